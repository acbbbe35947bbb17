"""Adapters on one base: `regraft serve` behind an address, `bundle` as one model, `compose` as one."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from flows.addresses import demand_free, loopback
from flows.commands import figures
from tasks import params as parameters
from tasks.errors import InputError
from tasks.serving import app
from tasks.serving.messages import NAME, Adapter
from tasks.stages import composition
from tasks.stages.composition import Recipe
from tasks.stages.serving import Service
from tasks.tracking import server
from tasks.tracking.registry import Registry

TOKEN = "REGRAFT_TOKEN"
SHORTEST = 16  # characters of a token
GRACE = 30  # seconds for the requests that are on their way when the server is told to end


@dataclass(frozen=True)
class Plan:
    """room: bytes for adapters in memory, None: no limit. batch: rows that the model takes at once. refresh:
    seconds between two looks at aliases."""

    host: str
    port: int
    room: int | None
    batch: int
    refresh: float


def serve(root: Path, sources: Mapping[str, str], plan: Plan, tell: Callable[[str], None]) -> None:
    """Until it is told to end. Raises InputError for an address that cannot be had, one that others reach
    without a token, and RegraftError for what cannot be served; then nothing is."""
    token = _token(plan.host)
    demand_free(plan.host, plan.port)
    service = Service(root, room=plan.room)
    for name, source in sources.items():
        tell(_line(service.load(name, source)))
    settings = app.Settings(batch=plan.batch, refresh=plan.refresh, token=token, hosts=_hosts(plan.host))
    tell(f"http://{plan.host}:{plan.port}  (Ctrl-C ends it)")
    uvicorn.run(
        app.build(service, settings),
        host=plan.host,
        port=plan.port,
        log_level="warning",
        timeout_graceful_shutdown=GRACE,
    )


def bundle(root: Path, sources: Mapping[str, str], model: str, tell: Callable[[str], None]) -> None:
    """Register them as one MLflow model. Raises InputError for a name that versions of the gate's have, and
    RegraftError for what cannot be served."""
    from tasks.stages import bundle as bundles  # late: seconds, which a server does not need

    if model in parameters.load(root / "params.yaml").models():
        raise InputError(f"{model} is a model that this project's gate judges: name the bundle otherwise")
    service = Service(root)
    for name, source in sources.items():
        tell(_line(service.load(name, source)))
    number = bundles.register(service, root, model)
    tell(f"{model} version {number}")
    where = (
        "" if "MLFLOW_TRACKING_URI" in os.environ else f"MLFLOW_TRACKING_URI={shlex.quote(server.uri(root))} "
    )
    tell(f"{where}mlflow models serve -m models:/{model}/{number} --env-manager local")


def compose(root: Path, recipe: Recipe, target: Path, tell: Callable[[str], None]) -> None:
    """Write one adapter to `target`. Raises InputError for adapters that do not go together."""
    made = composition.compose(recipe, root, target)
    told = ", ".join(f"{weight:g} of {source}" for source, weight in recipe.weights.items())
    tell(f"{target}: {told}, by {recipe.by}: rank {made.adapter.rank}, {', '.join(made.labels)}")
    tell(f"no gate has judged it; `regraft serve NAME={shlex.quote(str(target))}` answers by it")


def weighed(entries: Sequence[str]) -> dict[str, float]:
    """SOURCE=WEIGHT, each. Raises InputError."""
    found: dict[str, float] = {}
    for entry in entries:
        source, _, weight = entry.rpartition("=")
        if source in found:
            raise InputError(f"{entry}: the weight of {source} is {found[source]:g} already")
        try:
            found[source] = float(weight if source else "")
        except ValueError:
            raise InputError(
                f"{entry}: write SOURCE=WEIGHT, such as models:/MODEL@champion=1 or DIRECTORY=0.5"
            ) from None
    return found


def named(entries: Sequence[str], root: Path) -> dict[str, str]:
    """NAME=SOURCE, each; by default the champions of the project and of those tasks that have one, each under
    its own name. Raises InputError."""
    if not entries:
        first, *others = parameters.load(root / "params.yaml").models()
        names = [first, *(name for name in others if Registry(root, name).champion())]
        return {name: f"models:/{name}@champion" for name in names}
    found: dict[str, str] = {}
    for entry in entries:
        name, equals, source = entry.partition("=")
        if not (equals and source and re.fullmatch(NAME, name)):
            raise InputError(f"{entry}: write NAME=models:/MODEL@champion or NAME=DIRECTORY of a project")
        if name in found:
            raise InputError(f"{entry}: {name} is {found[name]} already")
        found[name] = source
    return found


def _line(one: Adapter) -> str:
    version = f" version {one.version}" if one.version else ""
    return (
        f"{one.name}: {one.source}{version}, {', '.join(one.labels) or one.kind}, {figures.size(one.bytes)}"
    )


def _token(host: str) -> str:
    token = os.environ.get(TOKEN, "")
    if not token and not loopback(host):
        raise InputError(
            f"{host}: others can reach it, and everybody may ask. Set {TOKEN} in the environment, from "
            "`openssl rand -hex 24`; who asks says Authorization: Bearer TOKEN"
        )
    if token and len(token) < SHORTEST:
        raise InputError(f"{TOKEN} has fewer than {SHORTEST} characters: take `openssl rand -hex 24`")
    return token


def _hosts(host: str) -> tuple[str, ...]:
    """Alone on this machine, no page of another site may ask under a name of its own."""
    return ("localhost", "127.0.0.1", "[::1]", host) if loopback(host) else ("*",)
