"""`regraft init`: params.yaml for a table of one's own or for a named way to fine-tune."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tasks import edit, files
from tasks import params as parameters
from tasks.errors import InputError, ParamsError, did_you_mean
from tasks.params import FinetuningParams, Params, Phase, Subset, TextSource
from tasks.presets import DECIDED, KEPT_HEAD, PRESETS
from tasks.text.kinds import KINDS
from tasks.text.reading import infer


def write(
    root: Path,
    data: Path | None,
    *,
    checkpoint: str | None,
    text: str | None,
    label: str | None,
    force: bool,
    preset: str | None = None,
    kind: str = "label",
    columns: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Iterator[str]:
    """Change params.yaml where it has to be, yielding what was decided; all else stays to the letter.

    Of rows of kind `label` the columns are guessed, of others they have the kind's own names, or `columns`.
    Raises ParamsError where params.yaml holds another table of the user's and `force` is not given, and for
    an unknown preset or override; InputError where there is nothing to do.
    """
    target = root / "params.yaml"
    former = wanted = parameters.load(target)
    told: list[str] = []
    if data is not None:
        _demand_room(root, former, force)
        guess = _guessed(root / data, kind, {"text": text, "label": label}, columns or {})
        wanted = _for_table(wanted, data, guess, checkpoint, kind)
        told += _columns(guess)
    elif not (preset or overrides) or checkpoint or text or label or columns or kind != "label":
        raise InputError(
            "name your table, as in `regraft init reviews.csv`; only --preset and -S go without one"
        )
    if preset is not None:
        wanted = wanted.model_copy(update={"finetuning": with_preset(former.finetuning, preset)})
    if data is not None or preset is not None:
        wanted = for_kind(wanted)
    if preset is not None:
        told += [f"preset {preset}: {PRESETS[preset].summary}", *map(_phase, wanted.finetuning.phases)]
    if overrides:
        wanted = parameters.override(wanted, overrides)
        told += overrides
    written = target.read_bytes().decode("utf-8")  # as bytes: the ends of lines stay what they are
    comments = {"finetuning.phases": f"preset {preset}: {PRESETS[preset].source}"} if preset else {}
    files.write_text(target, edit.rewrite(written, wanted, name=str(target), comments=comments))
    yield from told
    yield f"wrote {target}: `regraft plan` shows what would run, `regraft run` runs it"


def with_preset(former: FinetuningParams, name: str) -> FinetuningParams:
    """`former` with the keys that presets decide, those that this one does not name at their defaults."""
    if name not in PRESETS:
        raise ParamsError(f"no preset {name!r}; {did_you_mean(name, PRESETS)}")
    kept = former.model_dump(mode="json", exclude=set(DECIDED))
    chosen = FinetuningParams.model_validate({**kept, **PRESETS[name].values})
    return former.model_copy(update={key: getattr(chosen, key) for key in DECIDED})


def for_kind(params: Params) -> Params:
    """`params` without phases of the head alone, where the head is no new one.

    Raises ParamsError where no phase is left.
    """
    settings, kind = params.finetuning, params.sources.text.kind
    if kind not in KEPT_HEAD:
        return params
    phases = tuple(phase for phase in settings.phases if phase.depth != 0 or phase.floors)
    if not phases:
        raise ParamsError(
            f"every phase trains a new head alone, and the head of rows of kind {kind} is the checkpoint's "
            "own: take another preset, such as lora or full"
        )
    return params.model_copy(update={"finetuning": settings.model_copy(update={"phases": phases})})


def _phase(phase: Phase) -> str:
    count, unit = (phase.epochs, "epoch") if phase.steps is None else (phase.steps, "step")
    length = f"{count} {unit}{'s' * (count > 1)}"
    return f"  {phase.name}: depth {phase.depth}, {length}, learning rate {phase.learning_rate:g}"


def _demand_room(root: Path, former: Params, force: bool) -> None:
    if not former.sources.text.path.startswith("package:") and not force:
        raise ParamsError(
            f"{root / 'params.yaml'} already reads {former.sources.text.path}: --force replaces it"
        )


def _guessed(
    table: Path, kind: str, told: Mapping[str, str | None], columns: Mapping[str, str]
) -> infer.Guess:
    if kind not in KINDS:
        raise InputError(f"--kind: no kind of row {kind!r}; {did_you_mean(kind, KINDS)}")
    given = {name: column for name, column in told.items() if column} | dict(columns)
    if kind == "label":
        if strange := [name for name in given if name not in told]:
            raise InputError(f"--column {strange[0]}: rows of kind label have {' and '.join(told)}")
        return infer.columns(table, text=given.get("text"), label=given.get("label"))
    return infer.by_name(table, KINDS[kind].wanted(), given)


def _columns(guess: infer.Guess) -> list[str]:
    told = [f"{name} column: {column} ({guess.reasons[name]})" for name, column in guess.columns.items()]
    if guess.encoding != "utf-8":
        told.append(f"encoding: {guess.encoding} (by the first bytes)")
    return told


def _for_table(former: Params, data: Path, guess: infer.Guess, checkpoint: str | None, kind: str) -> Params:
    renamed = {role: column for role, column in guess.columns.items() if role != column}
    table = TextSource.model_validate(
        {"path": data.as_posix(), "kind": kind, "columns": renamed, "encoding": guess.encoding}
    )
    base = former.sources.checkpoint
    if checkpoint:
        base = base.model_copy(update={"path": checkpoint, "licence": "not stated"})
    sources = former.sources.model_copy(update={"text": table, "checkpoint": base})
    preparation = former.preparation.model_copy(update={"subset": Subset()})
    promotion = former.promotion.model_copy(update={"model": infer.model_name(data)})
    return former.model_copy(update={"sources": sources, "preparation": preparation, "promotion": promotion})
