"""Job variables of prefect.yaml against what workers take: Prefect passes by a name that it does not know."""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from flows.commands.check import Check
from tasks.params import Deployment

Schema = Mapping[str, Any]  # JSON schema of the job variables of one type of pool
REMEDY = "mend work_pool.job_variables in prefect.yaml, then `prefect --no-prompt deploy --all`"
LATER = "{{"  # what Prefect fills in when it deploys, or when a run begins


class Fault(NamedTuple):
    """meant: the name that comes next to an unknown one, if one does."""

    told: str
    meant: str | None = None

    def __str__(self) -> str:
        return f"{self.told}: did you mean {self.meant}?" if self.meant else self.told


def of_template(template: Mapping[str, Any]) -> Schema:
    """Empty where a pool's template names no variables: then nothing can be said of them."""
    found: Schema = template.get("variables") or {}
    return found


def installed(root: Path) -> dict[str, Schema]:
    """By type: of workers that are installed here, and of the templates in the checkout's `pools/`."""
    from prefect.workers.base import BaseWorker

    found: dict[str, Schema] = {}
    for kind in sorted(BaseWorker.get_all_available_worker_types()):
        if worker := BaseWorker.get_worker_class_from_type(kind):
            found[kind] = of_template(worker.get_default_base_job_template())
    for path in sorted((root / "pools").glob("*.json")):
        found[f"pools/{path.name}"] = of_template(json.loads(path.read_text(encoding="utf-8")))
    return found


def check(wanted: Sequence[Deployment], schemas: Mapping[str, Mapping[str, Schema]]) -> Check:
    """`schemas`: for each pool by type. Several where nobody can be asked what the pool is: one must fit."""
    told = list(dict.fromkeys(_told(wanted, schemas)))
    types = sorted({kind for those in schemas.values() for kind in those})
    return Check("job variables", not told, "; ".join(told) or f"known to {', '.join(types)}", REMEDY)


def _told(wanted: Sequence[Deployment], schemas: Mapping[str, Mapping[str, Schema]]) -> Iterator[str]:
    for one in wanted:
        tried = {kind: faults(one.variables, schema) for kind, schema in schemas[one.pool].items()}
        if tried:
            kind = min(tried, key=lambda kind: _badness(tried[kind]))
            yield from (f"deployment {one.name}, {kind}: {fault}" for fault in tried[kind])


def _badness(found: Sequence[Fault]) -> tuple[int, int]:
    return len(found), sum(fault.meant is None for fault in found)


def faults(variables: Mapping[str, Any], schema: Schema) -> list[Fault]:
    """Names that `schema` has not, names that it demands, values that it refuses."""
    from prefect.utilities.schema_tools.validation import validate

    if not (known := schema.get("properties")):
        return []
    found = [Fault(f"unknown {name}", _near(name, known)) for name in variables if name not in known]
    found += [Fault(f"{name} is missing") for name in schema.get("required", ()) if name not in variables]
    said = {name: value for name, value in variables.items() if LATER not in str(value)}
    wrong = validate(said, dict(schema), ignore_required=True)
    return found + [Fault(f"{error.json_path.removeprefix('$.')}: {error.message}") for error in wrong]


def _near(name: str, known: Mapping[str, Any]) -> str | None:
    return next(iter(get_close_matches(name, known, n=1)), None)
