import json
from contextlib import suppress

import pyarrow as pa
import pytest

from tasks.errors import CheckpointError, ParamsError
from tasks.text import kinds
from tasks.text.tokens import vocabulary


def test_a_tokenizer_is_aligned_with_the_table_it_came_from(tiny_checkpoint):
    tokenizer = vocabulary.load(tiny_checkpoint())
    found = vocabulary.alignment(tokenizer, tokenizer, kept=True, added=()).to_pydict()
    assert found["id"] == found["source_id"] == list(range(8))
    assert found["token"][5:] == ["one", "two", "three"]
    assert set(found["origin"]) == {"kept"}
    assert vocabulary.size(tokenizer) == 8


def test_special_tokens_are_those_the_tokenizer_has(tiny_checkpoint):
    tokenizer = vocabulary.load(tiny_checkpoint())
    assert vocabulary.special(tokenizer) == {"unk": 1, "sep": 3, "pad": 0, "cls": 2, "mask": 4}


def test_an_adopted_tokenizer_states_the_model_length_and_forgets_where_it_was(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint()
    tokenizer = vocabulary.load(folder)
    vocabulary.adopt(tokenizer, folder / "config.json")
    tokenizer.save_pretrained(tmp_path / "out")
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert str(tmp_path) not in written
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 12
    assert vocabulary.load(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_a_directory_without_a_tokenizer_is_refused(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer \(none of tokenizer.json, vocab.txt"):
        vocabulary.load(folder)


def test_a_torn_tokenizer_is_refused(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(CheckpointError, match="cannot be read"):
        vocabulary.load(folder)


def test_tokens_beyond_the_embedding_table_are_named(tiny_checkpoint):
    folder = tiny_checkpoint(vocab_size=6)
    with pytest.raises(CheckpointError, match=r"2 tokens lie beyond the 6 rows .*the first 'two' with id 6"):
        vocabulary.adopt(vocabulary.load(folder), folder / "config.json")


def test_code_in_a_checkpoint_does_not_run(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint()
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with suppress(CheckpointError):
        vocabulary.load(folder)
    assert not (tmp_path / "ran").exists()


def test_added_tokens_come_last_in_their_order_and_marks_are_special(tiny_checkpoint):
    tokenizer = vocabulary.load(tiny_checkpoint())
    vocabulary.extend(tokenizer, ["<|user|>", "four"])
    assert tokenizer("one <|user|>four")["input_ids"][:5] == [2, 5, 8, 9, 3]
    assert (tokenizer.decode([5, 8], skip_special_tokens=True), tokenizer.extra_special_tokens) == (
        "one",
        ["<|user|>"],
    )
    found = vocabulary.alignment(
        tokenizer, vocabulary.load(tiny_checkpoint()), kept=True, added=["<|user|>", "four"]
    ).to_pylist()
    assert found[8] == {"id": 8, "token": "<|user|>", "origin": "added", "source_id": None, "pieces": []}
    assert [row["source_id"] for row in found] == [*range(8), None, None]


def test_new_tokens_are_cut_into_pieces_and_unknown_ones_left_out(tiny_checkpoint):
    theirs = vocabulary.load(tiny_checkpoint(["<|", "user", "|>"]))
    ours, added = vocabulary.load(tiny_checkpoint(["<|", "user", "|>"])), ["<|user|>", "<|assistant|>", "x"]
    vocabulary.extend(ours, added)
    found = vocabulary.alignment(ours, theirs, kept=True, added=added)["pieces"].to_pylist()
    assert found == [[]] * 8 + [[5, 6, 7], [5, 7], []]


def test_a_model_that_counts_positions_behind_its_padding_has_fewer(tiny_checkpoint):
    folder = tiny_checkpoint(model_type="roberta", max_position_embeddings=14, pad_token_id=1)
    tokenizer = vocabulary.load(folder)
    vocabulary.adopt(tokenizer, folder / "config.json")
    assert tokenizer.model_max_length == 12


@pytest.mark.parametrize(
    ("tokens", "message"),
    [(["one"], "'one', which is already token 5"), (["x", "x"], "'x', which is already token 8")],
)
def test_a_token_that_is_there_already_is_refused(tiny_checkpoint, tokens, message):
    with pytest.raises(ParamsError, match=f"vocabulary.add_tokens names {message}: take it out"):
        vocabulary.extend(vocabulary.load(tiny_checkpoint()), tokens)


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("label", {"text": "a", "label": "x"}, ["a"]),
        ("pair", {"text": "a", "pair": "b", "label": "x"}, ["a", "b"]),
        ("completion", {"text": "a", "completion": "b"}, ["a", "b"]),
        ("translation", {"text": "a", "target": "b"}, ["a", "b"]),
        (
            "chat",
            {"text": "a", "messages": [{"role": "user", "content": "a"}, {"role": "me", "content": "b"}]},
            ["a", "b"],
        ),
    ],
)
def test_a_tokenizer_learns_from_all_that_a_row_says(kind, row, said):
    schema = pa.schema({"text": pa.string(), **kinds.KINDS[kind].columns})
    assert vocabulary.texts(pa.Table.from_pylist([row], schema=schema), kind) == said
