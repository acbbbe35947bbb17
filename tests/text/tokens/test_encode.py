import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tasks.errors import CheckpointError, DataError, ParamsError
from tasks.text import kinds
from tasks.text.tokens import encode, rows, vocabulary
from tasks.text.tokens.tally import Tally, tallied

TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}three{% endif %}"
STRICT = "{{ raise_exception('roles must alternate') }}"


@pytest.fixture
def tokenizer(tiny_checkpoint):
    folder = tiny_checkpoint()
    loaded = vocabulary.load(folder)
    vocabulary.adopt(loaded, folder / "config.json")
    return loaded


def table(kind, *found):
    columns = {"text": pa.string(), **kinds.KINDS[kind].columns}
    data = {"id": [f"row{n}" for n in range(len(found))]}
    for place, name in enumerate(columns):
        data[name] = pa.array([row[place] for row in found], columns[name])
    return pa.table(data)


def encoded(tokenizer, kind, *found, max_length=8, names=("a", "b")):
    return encode.shard(
        table(kind, *found), tokenizer=tokenizer, kind=kind, max_length=max_length, names=names
    )


LONG = "one one one one two two two two"
CASES = {  # kind -> row, what becomes of it in 8 tokens, tokens lost
    "label": (("one", "b"), {"input_ids": [2, 5, 3], "label": 1}, 0),
    "label, cut": ((LONG, "a"), {"input_ids": [2, 5, 5, 5, 5, 6, 6, 3], "label": 0}, 2),
    "labels": (("one", ["b"]), {"input_ids": [2, 5, 3], "labels": [0, 1]}, 0),
    "labels, none": (("one", []), {"input_ids": [2, 5, 3], "labels": [0, 0]}, 0),
    "score": (("one", 0.5), {"input_ids": [2, 5, 3], "label": 0.5}, 0),
    "text": ((LONG,), {"input_ids": [2, 5, 5, 5, 5, 6, 6, 3]}, 2),
    "completion": (("one", "two two"), {"input_ids": [2, 5, 3], "target_ids": [6, 6]}, 0),
    "completion, cut": ((LONG, LONG), {"input_ids": [2, 5, 5, 3], "target_ids": [5, 5, 5, 5]}, 10),
    "completion, long prompt": ((LONG, "three"), {"input_ids": [2, 5, 5, 5, 5, 6, 3], "target_ids": [7]}, 3),
    "completion, long answer": (("one", LONG), {"input_ids": [2, 5, 3], "target_ids": [5, 5, 5, 5, 6]}, 3),
    "translation": (("one", "two"), {"input_ids": [2, 5, 3], "target_ids": [2, 6, 3]}, 0),
    "prefix-remainder": ((LONG, LONG), {"input_ids": [2, 5, 5, 5, 5, 6, 6, 3], "target_ids": [2, 5, 5, 5, 5, 6, 6, 3]}, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_row_of_each_kind(tokenizer, name):
    row, expected, lost = CASES[name]
    kind = name.split(",")[0]
    (found,) = encoded(tokenizer, kind, row).to_pylist()
    assert found == {"id": "row0", **expected, "lost": lost, "unknown": 0, "missed": 0}


def test_pairs_give_way_where_they_are_longer(tokenizer):
    found = encoded(tokenizer, "pair", (LONG, "three", "a"), ("one", "two", "b")).to_pylist()
    assert [row["lost"] for row in found] == [1, 0]
    assert found[0]["input_ids"].count(7) == 1
    assert [row["label"] for row in found] == [0, 1]


@pytest.mark.parametrize("makes", [True, False])
def test_types_of_tokens_stand_where_the_tokenizer_makes_them(tokenizer, makes):
    names = ["input_ids", "token_type_ids", "attention_mask"] if makes else ["input_ids", "attention_mask"]
    tokenizer.model_input_names = names
    found = encoded(tokenizer, "pair", ("one", "two", "a"))
    assert ("token_type_ids" in found.column_names) == makes
    assert found.schema.names[:-3] == encode.schema("pair", tokenizer).names


def test_a_label_row_has_the_columns_that_training_reads(tokenizer):
    schema = encode.schema("label", tokenizer)
    assert [(part.name, str(part.type)) for part in schema] == [
        ("id", "string"), ("input_ids", "list<item: int32>"), ("label", "int64"),
    ]  # fmt: skip
    assert encoded(tokenizer, "label").schema.names == [*schema.names, "lost", "unknown", "missed"]


@pytest.mark.parametrize("kind", encode.FORMS)
def test_no_rows_give_the_columns_alone(tokenizer, kind):
    tokenizer.chat_template = TEMPLATE
    found = encoded(tokenizer, kind)
    assert len(found) == 0
    assert tallied(found) == Tally()


def test_a_chat_says_where_its_last_message_begins(tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}three{% endif %}"
    )
    said = [{"role": "user", "content": "one one"}, {"role": "assistant", "content": "three two"}]
    (found,) = encoded(tokenizer, "chat", ("one one", said)).to_pylist()
    assert (found["input_ids"], found["prompt_length"], found["lost"]) == ([5, 5, 7, 6], 3, 0)
    (short,) = encoded(tokenizer, "chat", ("one one", said), max_length=2).to_pylist()
    assert (short["input_ids"], short["prompt_length"], short["lost"]) == ([5, 5], 2, 2)


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        (None, CheckpointError, "no chat template.*take a checkpoint that was trained to chat"),
        (
            STRICT,
            DataError,
            "row row0: the checkpoint's chat template refuses its messages: roles must alternate",
        ),
    ],
)
def test_a_chat_that_no_template_can_write(tokenizer, template, error, message):
    tokenizer.chat_template = template
    with pytest.raises(error, match=message):
        encoded(tokenizer, "chat", ("one", [{"role": "user", "content": "one"}]))


@pytest.mark.parametrize("kind", ["preference", "rating"])
def test_kinds_that_wait_for_a_later_change_are_refused(tokenizer, kind):
    with pytest.raises(DataError, match=f"rows of kind {kind} cannot be encoded yet: "):
        encode.schema(kind, tokenizer)


def test_every_kind_is_encoded_or_refused():
    assert encode.FORMS.keys() | encode.UNREADY.keys() == kinds.KINDS.keys()


def test_for_packing_nothing_is_cut_and_bare_texts_are_closed(tokenizer):
    framed = encoded(tokenizer, "text", (LONG,), max_length=None).to_pylist()[0]
    assert (len(framed["input_ids"]), framed["lost"]) == (10, 0)
    tokenizer.backend_tokenizer.post_processor = None
    tokenizer.eos_token = "[SEP]"
    bare = encoded(tokenizer, "text", ("one",), ("two",), max_length=None)
    assert bare["input_ids"].to_pylist() == [[5, 3], [6, 3]]


def test_totals_are_counted(tokenizer):
    tally = tallied(encoded(tokenizer, "label", ("one four", "a"), (LONG, "b"), max_length=6))
    assert tally == Tally(2, 10, 1, 4, 1, {4: 1, 10: 1})
    both = tally + tally
    assert (both.rows, both.fitting(0.5), both.fitting(0.99)) == (4, 4, 10)


def test_bytes_do_not_count_as_unknown_where_one_token_has_all_roles(tokenizer):
    tokenizer.eos_token = "[UNK]"
    assert tallied(encoded(tokenizer, "label", ("one four", "a"))).unknown == 0


def test_a_label_without_a_number_is_refused(tokenizer):
    with pytest.raises(DataError, match="labels 'c' are not among a, b"):
        encoded(tokenizer, "label", ("one", "c"))


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


@given(
    some.lists(some.sampled_from(["train", "test"]), max_size=60), some.integers(1, 9), some.integers(1, 9)
)
def test_batches_are_equal_whatever_the_row_groups(tmp_path_factory, splits, group, size):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    parquet.write_table(
        pa.table({"id": pa.array(range(len(splits)), pa.int64()), "split": pa.array(splits, pa.string())}),
        path,
        row_group_size=group,
    )
    found = [part["id"].to_pylist() for part in rows.batches(path, "train", ["id"], rows=size)]
    assert [place for part in found for place in part] == [
        place for place, split in enumerate(splits) if split == "train"
    ]
    assert all(len(part) == size for part in found[:-1])
