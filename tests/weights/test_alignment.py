"""Rows go where their tokens are; tokenizer, config and table must say the same of it."""

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, RobertaConfig

from tasks.errors import ArtifactError, CheckpointError
from tasks.weights import alignment
from tasks.weights.alignment import Alignment, Word
from tasks.weights.rules import KEEP

LIMITS = {"vocab_size": 37, "max_position_embeddings": 19}


def words(sources, *, before=37, extends=True, pieces=(4, 7)):
    made = (Word(i, f"t{i}", s, pieces if s is None else ()) for i, s in enumerate(sources))
    return Alignment(tuple(made), before, extends, 24)


def test_the_checkpoints_own_vocabulary_leaves_the_table_alone():
    own = words(range(30))
    assert own.same
    assert own.op == KEEP
    assert (own.after, own.reason) == (37, "")
    assert own.states == ["kept"] * 37


def test_added_tokens_stand_behind_all_others_and_move_none():
    more = words([*range(37), None, None])
    assert more.after == 39
    assert more.rows == (*((row,) for row in range(37)), (4, 7), (4, 7))
    assert more.reason == "2 rows made as the mean of their tokens' pieces"
    assert more.counts == {
        "before": 37, "after": 39, "kept": 37, "moved": 0, "from pieces": 2, "from all": 0,
    }  # fmt: skip


def test_an_added_token_may_take_a_row_that_padded_the_table():
    more = words([*range(30), None])
    assert more.after == 37
    assert more.rows[29:32] == ((29,), (4, 7), (31,))


def test_a_new_vocabulary_has_as_many_rows_as_ids_and_loses_the_rest():
    other = words([3, 1, None], extends=False)
    assert other.rows == ((3,), (1,), (4, 7))
    assert other.states == ["moved", "kept", "new"]
    assert words([3, None], extends=False, pieces=()).reason == (
        "1 row moved to their tokens' new ids, 1 row made as the mean of all"
    )


@given(st.lists(st.none() | st.integers(0, 11), min_size=1, max_size=20), st.booleans())
def test_every_row_is_explained_once(sources, extends):
    found = words(sources, before=12, extends=extends)
    counts = found.counts
    kinds = ("kept", "moved", "from pieces", "from all")
    assert sum(counts[kind] for kind in kinds) == counts["after"] == len(found.rows) == len(found.states)
    assert all(found.rows[ours] == (theirs,) for theirs, ours in found.pairs)


def test_what_is_read_is_what_the_vocabulary_stage_wrote(tmp_path):
    rows = [
        {"id": 1, "token": "b", "origin": "added", "source_id": None, "pieces": [0, 0]},
        {"id": 0, "token": "a", "origin": "kept", "source_id": 0, "pieces": []},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "alignment.parquet")
    found = alignment.read(tmp_path / "alignment.parquet", before=1, width=3)
    assert found == Alignment((Word(0, "a", 0), Word(1, "b", None, (0, 0))), 1, True, 3)
    parquet.write_table(pa.table({"id": [0]}), tmp_path / "alignment.parquet")
    with pytest.raises(ArtifactError, match=r"no column token, origin, .*dvc repro -f vocabulary"):
        alignment.read(tmp_path / "alignment.parquet", before=1, width=3)


def test_the_config_follows_the_vocabulary():
    config = BertConfig(**LIMITS, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    moved = words([2, None, 0], extends=False)
    assert alignment.fields(moved, config, {"pad": 2}) == {
        "vocab_size": 3, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    more = words([*range(37), None])
    assert alignment.fields(more, config, {"pad": 0}) == {
        "vocab_size": 38, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    }  # fmt: skip


def check(found, config=None, special=None, *, longest=19, behind=False):
    alignment.check(found, config or BertConfig(**LIMITS), special or {}, longest=longest, behind=behind)


@pytest.mark.parametrize(
    ("found", "options", "message"),
    [
        (words(range(38)), {}, "takes row 37 of the embedding table, which has 37 rows"),
        (words([0, None], pieces=(40,)), {}, "takes row 40 of the embedding table, which has 37 rows"),
        (words(range(30), before=30), {}, "declares 37 rows of embeddings, the table has 30"),
        (words(range(37)), {"special": {"sep": 37}}, "sep_token_id is 37, the embedding table has 37 rows"),
        (
            words(range(37)),
            {"config": BertConfig(**LIMITS, eos_token_id=99)},
            "eos_token_id is 99, the embedding table has 37 rows",
        ),
        (words([None] * 3, extends=False), {}, "none of the 3 tokens has a row in the embedding table of 37"),
        (words(range(37)), {"longest": 20}, "texts have 20 tokens, the model has 19 positions"),
        (
            words([1, 0, *range(2, 37)]),
            {"config": RobertaConfig(**LIMITS), "behind": True, "special": {"pad": 0}, "longest": 17},
            "padding token has id 0, in the checkpoint 1: this model counts positions from it",
        ),
        (
            words(range(37)),
            {"config": RobertaConfig(**LIMITS), "behind": True, "longest": 18},
            "texts have 18 tokens, the model has 17 positions",
        ),
    ],
)
def test_what_does_not_belong_together_is_told_with_both_numbers(found, options, message):
    with pytest.raises(CheckpointError, match=f"(?s)1 fault:.*{message}.*vocabulary.tokenizer: checkpoint"):
        check(found, **options)


def test_all_faults_are_told_at_once():
    with pytest.raises(CheckpointError, match=r"3 faults"):
        check(words(range(38)), special={"pad": 99}, longest=20)
