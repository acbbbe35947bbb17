"""`regraft init`: params.yaml for a table of one's own or for a named way to fine-tune."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tasks import edit, files
from tasks import params as parameters
from tasks.errors import InputError, ParamsError, did_you_mean
from tasks.params import FinetuningParams, Params, Phase, Subset, TextSource
from tasks.presets import DECIDED, PRESETS
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
    overrides: Sequence[str] = (),
) -> Iterator[str]:
    """Change params.yaml where it has to be, yielding what was decided; all else stays to the letter.

    Raises ParamsError where params.yaml holds another table of the user's and `force` is not given, and for
    an unknown preset or override; InputError where there is nothing to do.
    """
    target = root / "params.yaml"
    former = wanted = parameters.load(target)
    told: list[str] = []
    if data is not None:
        guess = _guessed(root, former, data, text=text, label=label, force=force)
        wanted = _for_table(wanted, data, guess, checkpoint)
        told += _columns(guess)
    elif not (preset or overrides) or checkpoint or text or label:
        raise InputError(
            "name your table, as in `regraft init reviews.csv`; only --preset and -S go without one"
        )
    if preset is not None:
        wanted = wanted.model_copy(update={"finetuning": with_preset(former.finetuning, preset)})
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


def _phase(phase: Phase) -> str:
    count, unit = (phase.epochs, "epoch") if phase.steps is None else (phase.steps, "step")
    length = f"{count} {unit}{'s' * (count > 1)}"
    return f"  {phase.name}: depth {phase.depth}, {length}, learning rate {phase.learning_rate:g}"


def _guessed(
    root: Path, former: Params, data: Path, *, text: str | None, label: str | None, force: bool
) -> infer.Guess:
    if not former.sources.text.path.startswith("package:") and not force:
        raise ParamsError(
            f"{root / 'params.yaml'} already reads {former.sources.text.path}: --force replaces it"
        )
    return infer.columns(root / data, text=text, label=label)


def _columns(guess: infer.Guess) -> list[str]:
    told = [
        f"text column: {guess.text} ({guess.why_text})",
        f"label column: {guess.label} ({guess.why_label})",
    ]
    if guess.encoding != "utf-8":
        told.append(f"encoding: {guess.encoding} (by the first bytes)")
    return told


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
