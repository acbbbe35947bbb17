import json

import polars as pl
import pytest

from tasks.text import decide, gather, kinds, ledger
from tasks.text.filters import Bounds
from tasks.text.reading import sources

NO_LIMITS = {"train": None, "validation": None, "test": None}
SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


class Case:
    """Fates of rows by their place in the input."""

    def __init__(self, gathered, decided):
        self.gathered, self.decided, self.fates = gathered, decided, decided.fates

    def __iter__(self):
        return iter([self.gathered, self.decided])

    @property
    def reasons(self):
        return self.fates.reason.tolist()

    @property
    def kept(self):
        return [place for place, reason in enumerate(self.reasons) if not reason]

    @property
    def splits(self):
        return self.fates.split.tolist()

    @property
    def clusters(self):
        return self.fates.cluster.tolist()


@pytest.fixture
def decided(tmp_path_factory):
    """Read, handle and decide on rows given as dictionaries (or as pairs of text and label)."""

    def on(*rows, kind="label", entries=None, threshold=0.8, shingle=3, conflicts="quarantine", **more):
        folder = tmp_path_factory.mktemp("decided")
        layout = more.pop("layout", {})
        given = [row if isinstance(row, dict) else {"text": row[0], "label": row[1]} for row in rows]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
        handling = gather.Handling(
            kind, (), Bounds(minimum=0, maximum=10**6), shingle, 6, more.pop("grams", None)
        )
        gathered = gather.gather(
            folder / "rows.jsonl",
            sources.Layout(kind=kind, **layout),
            handling,
            into=folder / "shards",
            rows=more.pop("shard_rows", 1000),
            workers=1,
        )
        rules = decide.Rules(
            threshold=threshold,
            conflicts=conflicts,
            one_answer=kinds.KINDS[kind].one_answer,
            near_answers=kinds.KINDS[kind].near_answers,
            shares=more.pop("shares", SHARES),
            salt="s",
            limits=more.pop("limits", NO_LIMITS),
        )
        signed = more.pop("signed", lambda own: own)(gathered.signed)
        before = pl.DataFrame(schema=ledger.SCHEMA) if entries is None else entries
        return Case(gathered, decide.decide(gathered, signed, rules, before))

    return on
