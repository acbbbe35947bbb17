import pytest

from tasks.errors import DataError, ParamsError
from tasks.text import encode, vocabulary


@pytest.fixture
def tokenizer(tiny_checkpoint):
    folder = tiny_checkpoint()
    loaded = vocabulary.load(folder)
    vocabulary.adopt(loaded, folder / "config.json")
    return loaded


def encoded(tokenizer, *texts, max_length=8, labels=None):
    ids = [f"row{n}" for n in range(len(texts))]
    return encode.encode(
        ids, texts, labels or ["b"] * len(texts), tokenizer=tokenizer, max_length=max_length, names=("a", "b")
    )


def test_rows_are_ragged_although_the_tokenizer_asks_for_padding(tokenizer):
    found = encoded(tokenizer, "one", "one two three")
    assert found.dataset["input_ids"][:] == [[2, 5, 3], [2, 5, 6, 7, 3]]
    assert found.tokens == 8


def test_a_cut_keeps_the_closing_token_and_is_counted(tokenizer):
    found = encoded(tokenizer, "one", "one one one one two two two two", max_length=6)
    assert found.dataset["input_ids"][:] == [[2, 5, 3], [2, 5, 5, 5, 5, 3]]
    assert (found.truncated, found.lost, found.tokens) == (1, 4, 9)


def test_unknown_tokens_are_counted(tokenizer):
    assert encoded(tokenizer, "one four", "five six").unknown == 3


def test_labels_are_numbered_in_the_order_of_their_names(tokenizer):
    found = encoded(tokenizer, "one", "two", "three", labels=["b", "a", "b"])
    assert found.dataset["label"][:] == [1, 0, 1]
    assert found.dataset["id"][:] == ["row0", "row1", "row2"]


def test_a_label_without_a_number_is_refused(tokenizer):
    with pytest.raises(DataError, match="labels 'c' are not among a, b"):
        encoded(tokenizer, "one", labels=["c"])


def test_the_types_are_declared_and_the_bytes_repeat(tokenizer, tmp_path):
    import pyarrow.parquet as parquet

    for name in ("first", "second"):
        encoded(tokenizer, "one", "two").dataset.to_parquet(tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    schema = parquet.read_schema(tmp_path / "first")
    assert schema.names == ["id", "input_ids", "label"]
    assert [str(kind) for kind in schema.types] == ["string", "list<element: int32>", "int64"]


@pytest.mark.parametrize(
    ("max_length", "message"),
    [
        (13, "13 is more than the 12 tokens that this checkpoint has positions for"),
        (2, "leaves no room for text: 2"),
    ],
)
def test_a_length_that_cannot_work_is_refused(tokenizer, max_length, message):
    with pytest.raises(ParamsError, match=message):
        encode.check_length(tokenizer, max_length)
    encode.check_length(tokenizer, 12)
