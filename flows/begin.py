"""`regraft init`: params.yaml for a table of one's own, with as much as can be inferred from it."""

from collections.abc import Iterator
from pathlib import Path

from tasks import files
from tasks import params as parameters
from tasks.errors import ParamsError
from tasks.params import Params, Subset, TextSource
from tasks.text.reading import infer


def write(
    root: Path,
    data: Path,
    *,
    checkpoint: str | None,
    text: str | None,
    label: str | None,
    force: bool,
) -> Iterator[str]:
    """Write params.yaml, yielding what was decided; all that is not of the text keeps the value that stands.

    Raises ParamsError where params.yaml holds another table of the user's and `force` is not given.
    """
    target = root / "params.yaml"
    former = parameters.load(target)
    if not former.sources.text.path.startswith("package:") and not force:
        raise ParamsError(f"{target} already reads {former.sources.text.path}: --force replaces it")
    guess = infer.columns(root / data, text=text, label=label)
    files.write_text(target, parameters.dump(_for_table(former, data, guess, checkpoint)))
    yield f"text column: {guess.text} ({guess.why_text})"
    yield f"label column: {guess.label} ({guess.why_label})"
    if guess.encoding != "utf-8":
        yield f"encoding: {guess.encoding} (by the first bytes)"
    yield f"wrote {target}: `regraft plan` shows what would run, `regraft run` runs it"


def _for_table(former: Params, data: Path, guess: infer.Guess, checkpoint: str | None) -> Params:
    names = {"text": guess.text, "label": guess.label}
    renamed = {role: column for role, column in names.items() if role != column}
    table = TextSource.model_validate(
        {"path": data.as_posix(), "columns": renamed, "encoding": guess.encoding}
    )
    base = former.sources.checkpoint
    if checkpoint:
        base = base.model_copy(update={"path": checkpoint, "licence": "not stated"})
    sources = former.sources.model_copy(update={"text": table, "checkpoint": base})
    preparation = former.preparation.model_copy(update={"subset": Subset()})
    promotion = former.promotion.model_copy(update={"model": infer.model_name(data)})
    return former.model_copy(update={"sources": sources, "preparation": preparation, "promotion": promotion})
