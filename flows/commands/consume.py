"""`regraft predict`: what the registered champion says of texts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tasks import files, progress
from tasks.errors import InputError, did_you_mean
from tasks.evaluation.telling import BETWEEN, TELLINGS, Columns, tempered
from tasks.params import Params, TextSource
from tasks.stages.champion import Champion, current
from tasks.text import copies
from tasks.text.copies import Chunk, Format
from tasks.text.kinds import KINDS
from tasks.text.reading import streams
from tasks.text.reading.layout import Layout

SHOWN = 5  # lines that were set aside


def predict(
    params: Params, root: Path, text: str, output: Path | None, *, pair: str | None = None
) -> Iterator[str]:
    """One line for a text, or for it and its `pair`; for a table a copy of it with what TELLINGS adds.

    Rows without a text are set aside in a table beside the copy. Raises InputError where there is no
    champion, where it learned from pairs and is asked about single texts or the other way round, and for a
    table without the columns that hold the texts.
    """
    if pair is None and copies.is_table(text):
        yield from _table(params, root, Path(text), output)
        return
    champion = current(params, root)
    champion.demand(pairs=pair is not None)
    asked = tuple(champion.cleaned(one) for one in (text, pair) if one is not None)
    answers = champion.answers([asked if pair is not None else asked[0]])
    told = tempered(answers, champion.kind, champion.decision)[0]
    yield TELLINGS[champion.kind].line(told, champion.labels, champion.decision, asked[0])


def _table(params: Params, root: Path, path: Path, output: Path | None) -> Iterator[str]:
    source, form, champion = params.sources.text, copies.of(path), current(params, root)
    target = _target(path, output, form)
    aside, tally = _aside(target, path), _Tally()
    layout, columns, telling = _layout(source), _columns(source), TELLINGS[champion.kind]
    champion.demand(pairs=len(columns) == 2)
    added = telling.columns(champion.labels, champion.decision)
    _check(path, form.columns(path, layout), columns, added)
    chunks = progress.track(
        form.chunks(path, columns, layout, champion.cleaned),
        total=form.lines(path, layout),
        description=path.name,
        size=lambda chunk: chunk.lines,
        unit=" lines",
    )
    between = telling.between or source.separator or BETWEEN
    with (
        files.replace_file(target) as draft,
        files.replace_file(aside) as other,
        form.copy(path, draft, added, layout, between) as write,
        copies.aside(other) as set_aside,
    ):
        for chunk in chunks:
            write(chunk.rows, _cells(champion, chunk))
            set_aside(chunk.aside)
            tally.add(chunk)
    if not tally.reasons:
        aside.unlink()
    yield from tally.told(target, aside)


@dataclass
class _Tally:
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lines: list[int] = field(default_factory=list)  # the first that were set aside

    def add(self, chunk: Chunk) -> None:
        self.rows += len(chunk.texts)
        self.reasons.update(one.reason for one in chunk.aside)
        self.lines += [one.line for one in chunk.aside][: SHOWN - len(self.lines)]

    def told(self, target: Path, aside: Path) -> Iterator[str]:
        yield f"wrote {self.rows:,} rows to {target}"
        if count := self.reasons.total():
            why = ", ".join(f"{times:,} {reason}" for reason, times in self.reasons.most_common())
            more = ", …" if count > len(self.lines) else ""
            where = ", ".join(map(str, self.lines))
            yield f"without {count:,} that stand in {aside}: {why} (lines {where}{more})"


def _cells(champion: Champion, chunk: Chunk) -> list[list[Any]]:
    """What is added to each row."""
    if not chunk.texts:
        return []
    asked = [texts if len(texts) > 1 else texts[0] for texts in chunk.texts]
    told, labels, decision = TELLINGS[champion.kind].cells, champion.labels, champion.decision
    answers = tempered(champion.answers(asked), champion.kind, decision)
    return [told(answer, labels, decision) for answer in answers]


def _target(path: Path, output: Path | None, form: Format) -> Path:
    """Raises InputError for an output that is the table itself, or looks like another format."""
    own = streams.suffix(path)
    target = output or path.with_name(
        f"{_name(path)}.predicted{own if own in form.suffixes else form.suffixes[0]}"
    )
    if target.suffix.lower() not in form.suffixes:
        raise InputError(f"-o {target}: of {path.name} a copy as {' or '.join(form.suffixes)} is written")
    if target.resolve() == path.resolve():
        raise InputError(f"-o {target} is the table itself: name another file")
    return target


def _aside(target: Path, path: Path) -> Path:
    """Where stands what the copy lacks. Raises InputError where another's file has that name."""
    aside = target.with_name(f"{target.name}.quarantine.csv")
    if aside.resolve() == path.resolve():
        raise InputError(f"-o {target}: its quarantine would replace {path.name} itself: name another file")
    if aside.exists() and not copies.is_aside(aside):
        raise InputError(f"{aside} is no quarantine of regraft: rename it, or name another output with -o")
    return aside


def _name(path: Path) -> str:
    """Without the suffixes that say what is inside: `a.b` of a.b.csv.gz."""
    inner = path.with_suffix("") if path.suffix.lower() in streams.PACKED else path
    return inner.stem


def _layout(source: TextSource) -> Layout:
    return Layout(**{each.name: getattr(source, each.name) for each in fields(Layout)})


def _columns(source: TextSource) -> list[str]:
    """The table's own names of what the champion is asked about."""
    kind = KINDS[source.kind]
    names = [(kind.text or "text") if name == "text" else name for name in kind.asked]
    return [source.columns.get(name, name) for name in names]


def _check(path: Path, present: Sequence[str], wanted: Sequence[str], added: Columns) -> None:
    """Raises InputError naming every column that is missing, and that is there already."""
    faults = [
        f"has no column {name!r}; {did_you_mean(name, present)}" for name in wanted if name not in present
    ]
    faults += [f"has a column {name!r} already: rename it" for name in added if name in present]
    if faults:
        raise InputError("\n".join(f"{path} {fault}" for fault in faults))
