import json
from collections import Counter
from contextlib import suppress
from datetime import date

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import DataError, ParamsError, SourceError
from tasks.text import shards
from tasks.text.kinds import KINDS
from tasks.text.reading import sources
from tasks.text.reading.layout import Layout


@pytest.fixture
def table(tmp_path):
    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def objects(table):
    def write(*rows):
        return table("".join(json.dumps(row) + "\n" for row in rows), "table.jsonl")

    return write


def read(path, *, rows=20_000, **layout):
    """Documents and quarantined rows as dictionaries."""
    found = list(sources.read(path, Layout(**layout), rows=rows))
    return [row for s in found for row in s.documents.to_pylist()], [
        row for s in found for row in s.quarantined.to_pylist()
    ]


def texts(path, **layout):
    return [row["text"] for row in read(path, **layout)[0]]


GOOD = "".join(f"good {n},a\n" for n in range(3))


# Shards


def test_a_row_says_where_it_stood(table):
    documents, quarantined = read(table('id,text,label\n1,one, a \n2,"two, and\nmore",b\n3,x\n'))
    assert [{key: row[key] for key in ("id", "place", "split", "text", "label")} for row in documents] == [
        {"id": None, "place": "table.csv:2", "split": None, "text": "one", "label": "a"},
        {"id": None, "place": "table.csv:3", "split": None, "text": "two, and\nmore", "label": "b"},
    ]
    [row] = quarantined
    assert isinstance(row.pop("content"), int)
    assert row == {
        "id": None, "stage": "sources", "reason": "missing_columns", "file": "table.csv", "line": 5,
        "detail": "2 fields under 3 column names", "raw": b"3,x\n",
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_shards_have_their_schemas_even_when_empty(table, kind):
    rows = {
        "label": {"text": "a", "label": "b"}, "labels": {"text": "a", "labels": ["c", "b", "c"]},
        "score": {"text": "a", "score": 1}, "pair": {"text": "a", "pair": "b", "label": 3},
        "text": {"text": "a"}, "completion": {"prompt": "a", "completion": "b"},
        "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "translation": {"source": "a", "target": "b"}, "prefix-remainder": {"text": "a b c"},
        "tags": {"tokens": ["a", "b"], "tags": [0, "B-X"]},
        "answer": {"context": "abc", "question": "?", "answers": {"text": ["bc"], "answer_start": [1]}},
        "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "rating": {"prompt": "a", "completion": "b", "score": 0.5},
    }  # fmt: skip
    path = table("broken\n" + json.dumps(rows[kind]) + "\n", "table.jsonl")
    found = list(sources.read(path, Layout(kind=kind), rows=1))
    assert [(s.documents.num_rows, s.quarantined.num_rows) for s in found] == [(0, 1), (1, 0)]
    for shard in found:
        assert shard.documents.schema.names == [*shards.DOCUMENT.names, *KINDS[kind].columns]
        assert shard.documents.schema.types[5:] == list(KINDS[kind].columns.values())
        assert shard.quarantined.schema == shards.QUARANTINED
    expected = {
        "labels": ("a", ["b", "c"]), "chat": ("a", rows["chat"]["messages"]), "pair": ("a", "b", "3"),
        "tags": ("a b", ["a", "b"], ["0", "B-X"]), "prefix-remainder": ("a", "b c"), "score": ("a", 1.0),
    }  # fmt: skip
    [document] = found[1].documents.to_pylist()
    if kind in expected:
        assert tuple(document.values())[4:] == expected[kind]
    more = table(json.dumps(rows[kind] | {"channel": "web"}) + "\n", "more.jsonl")
    [[came]], _ = along(more, kind=kind, keep=("channel",))
    assert came == "web"


def test_the_size_of_shards_changes_nothing_but_their_number(table):
    path = table("text,label\n" + GOOD + "bad\n" + GOOD)
    sizes = [s.documents.num_rows + s.quarantined.num_rows for s in sources.read(path, Layout(), rows=2)]
    assert sizes == [2, 2, 2, 1]
    assert read(path, rows=2) == read(path) == read(path, rows=7)


def test_a_shard_of_long_texts_ends_early(table, monkeypatch):
    monkeypatch.setattr(sources, "LARGEST_SHARD", 100)
    path = table("text,label\n" + f"{'x' * 60},a\n" * 4 + f"{'y' * 60}\n" * 4)
    assert [len(s.documents) + len(s.quarantined) for s in sources.read(path, Layout())] == [2, 2, 2, 2]


def test_content_survives_new_rows_another_order_and_another_format(table, objects):
    rows = ["one,a", "two, b ", "one,b"]
    old = {(d["text"], d["label"], d["content"]) for d in read(table("text,label\n" + "\n".join(rows)))[0]}
    new = read(table("text,label\nnew,a\n" + "\n".join(rows[::-1])))[0]
    assert old < {(d["text"], d["label"], d["content"]) for d in new}
    assert len({content for *_, content in old}) == 3
    same = read(objects(*({"n": 1, "label": label, "text": text} for text, label, _ in sorted(old))))[0]
    assert {(d["text"], d["label"], d["content"]) for d in same} == old


def test_content_tells_apart_what_only_looks_alike(objects):
    rows = [("a\0", "b"), ("a", "\0b"), ("a\0b", "c"), ("a", "b\0c"), ("a,", "b"), ("a", ",b"), ("", "ab")]
    found, _ = read(
        objects(*({"text": text, "pair": pair, "label": "x"} for text, pair in rows)), kind="pair"
    )
    assert len({row["content"] for row in found}) == len(rows)


def test_content_of_a_quarantined_row_is_of_its_bytes(table):
    path = table(b"text,label\ngood,a\n\xe9,a\n\xe8,a\n\xe9,a\n")
    contents = [row["content"] for row in read(path)[1]]
    assert (contents[0] == contents[2], contents[0] == contents[1]) == (True, False)


def test_raw_is_capped(table):
    [row] = read(table("text,label\ngood,a\n" + "x" * 9000 + "\n"))[1]
    assert row["raw"] == b"x" * sources.LONGEST_RAW


# CSV


@pytest.mark.parametrize("word", ["N/A", "null", "nan", "None", "NA"])
def test_words_that_other_readers_lose_are_text_and_labels(table, word):
    [row] = read(table(f"text,label\n{word},{word}\n"))[0]
    assert (row["text"], row["label"]) == (word, word)


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (b"\xef\xbb\xbftext,label\none,a\n", "t.csv", ["one"]),
        ("text\tlabel\none, two\ta\n", "t.tsv", ["one, two"]),
        ("text,label\no\0ne,a\n", "t.csv", ["o\0ne"]),
        (b"text,label\r\none,a\rtwo,b\nthree,c", "t.csv", ["one", "two", "three"]),
        ("text,label\n,a\n", "t.csv", [""]),
    ],
    ids=["mark", "tsv", "nul", "line ends", "empty text"],
)
def test_what_csv_files_hold(table, content, name, expected):
    assert texts(table(content, name)) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("one", "missing_columns"),
        ("one,a,more", "extra_columns"),
        ("text,label", "repeated_header"),
        ("one,", "no_label"),
        ("one,  ", "no_label"),
        ('"one,a', "unclosed_quote"),
        ('"one" more,a', "unclosed_quote"),
        (b"\xe9t\xe9,a", "undecodable"),
        ("x" * 600 + ",a", "too_large"),
    ],
)
def test_a_faulty_row_is_quarantined_alone(table, row, reason):
    row = row if isinstance(row, bytes) else row.encode()
    path = table(b"text,label\nbefore,a\n" + row + b'\n"after",b\nlast,a\n')
    documents, quarantined = read(path, maximum_row=500)
    assert [row["text"] for row in documents] == ["before", "after", "last"]
    assert [(row["reason"], row["file"], row["line"]) for row in quarantined] == [(reason, "table.csv", 3)]


def test_an_undecodable_byte_may_be_replaced_and_is_counted(table):
    path = table(b"text,label\n\xe9t\xe9,a\n\xe9,\nlast,b\n")
    [shard] = sources.read(path, Layout(undecodable="replace"))
    assert shard.documents["text"].to_pylist() == ["\ufffdt\ufffd", "last"]
    assert shard.repaired == 1
    assert shard.quarantined["reason"].to_pylist() == ["no_label"]


def test_ten_thousand_rows_survive_one_byte(table):
    path = table(b"text,label\n" + b"text,a\n" * 5000 + b"\xff,a\n" + b"text,a\n" * 5000)
    found = list(sources.read(path, Layout()))
    assert sum(len(s.documents) for s in found) == 10_000
    assert [row["line"] for s in found for row in s.quarantined.to_pylist()] == [5002]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "auto"])
def test_another_encoding_decodes_the_same_bytes(table, encoding):
    content = "text,label\nété,a\n".encode("utf-16" if encoding == "auto" else encoding)
    assert texts(table(content), encoding=encoding) == ["été"]


# Cells, by kind


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("label", {"text": None, "label": "a"}, "no_text"),
        ("label", {"label": "a"}, "no_text"),
        ("label", {"text": 3, "label": "a"}, "wrong_type"),
        ("label", {"text": ["a"], "label": "a"}, "wrong_type"),
        ("label", {"text": "a", "label": None}, "no_label"),
        ("label", {"text": "a", "label": float("nan")}, "no_label"),
        ("label", {"text": "a", "label": " "}, "no_label"),
        ("label", {"text": "a", "label": ["b"]}, "wrong_type"),
        ("label", {"text": "a\ud800", "label": "b"}, "lone_surrogate"),
        ("label", {"text": "a", "label": "\udc00"}, "lone_surrogate"),
        ("label", {"text": "é" * 400, "label": "b"}, "too_large"),
        ("labels", {"text": "a", "labels": None}, "no_label"),
        ("labels", {"text": "a", "labels": ["b", None]}, "no_label"),
        ("labels", {"text": "a", "labels": "b"}, "wrong_type"),
        ("labels", {"text": "a", "labels": [["b"]]}, "wrong_type"),
        ("score", {"text": "a", "score": None}, "not_a_number"),
        ("score", {"text": "a", "score": float("nan")}, "not_a_number"),
        ("score", {"text": "a", "score": float("-inf")}, "not_a_number"),
        ("score", {"text": "a", "score": "1_0"}, "not_a_number"),
        ("score", {"text": "a", "score": "good"}, "not_a_number"),
        ("score", {"text": "a", "score": 10**400}, "not_a_number"),
        ("score", {"text": "a", "score": True}, "wrong_type"),
        ("pair", {"text": "a", "pair": None, "label": "b"}, "no_text"),
        ("tags", {"tokens": ["a", "b"], "tags": ["X"]}, "tags_mismatch"),
        ("tags", {"tokens": [], "tags": []}, "no_text"),
        ("tags", {"tokens": "a b", "tags": ["X"]}, "wrong_type"),
        ("tags", {"tokens": ["a"], "tags": "X"}, "wrong_type"),
        ("answer", {"context": "abc", "question": "?", "answers": {"text": ["bc"], "answer_start": [0]}}, "span_mismatch"),
        ("answer", {"context": "abc", "question": "?", "answers": {"text": ["c"], "answer_start": [-1]}}, "span_mismatch"),
        ("answer", {"context": "abc", "question": "?", "answers": {"text": [""], "answer_start": [2**40]}}, "span_mismatch"),
        ("answer", {"context": "a c", "question": "?", "answers": {"text": [" "], "answer_start": [1]}}, "span_mismatch"),
        ("answer", {"context": "abc", "question": "?", "answers": {"text": ["a"], "answer_start": []}}, "span_mismatch"),
        ("answer", {"context": "abc", "question": "?", "answers": {"text": ["a"]}}, "wrong_type"),
        ("answer", {"context": "abc", "question": "?", "answers": {"text": ["a"], "answer_start": ["0"]}}, "wrong_type"),
        ("answer", {"context": "abc", "question": "?", "answers": {"text": "a", "answer_start": 0}}, "wrong_type"),
        ("chat", {"messages": []}, "bad_messages"),
        ("chat", {"messages": [{"role": "assistant", "content": "b"}]}, "bad_messages"),
        ("chat", {"messages": [{"role": "user", "content": "a"}]}, "bad_messages"),
        ("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "bad_messages"),
        ("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}]}, "bad_messages"),
        ("chat", {"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}, "bad_messages"),
        ("chat", {"messages": [{"role": "me", "content": "a"}, {"role": "assistant", "content": "b"}]}, "bad_messages"),
        ("chat", {"messages": "hello"}, "wrong_type"),
        ("prefix-remainder", {"text": "one"}, "nothing_to_split"),
        ("completion", {"prompt": "a", "completion": 3}, "wrong_type"),
    ],
)  # fmt: skip
def test_a_cell_that_does_not_fit_quarantines_its_row(objects, kind, row, reason):
    good = {
        "label": {"text": "a", "label": "b"}, "labels": {"text": "a", "labels": []},
        "score": {"text": "a", "score": "1.5"}, "pair": {"text": "a", "pair": "b", "label": "c"},
        "tags": {"tokens": ["a"], "tags": ["X"]}, "prefix-remainder": {"text": "one two"},
        "answer": {"context": "abc", "question": "?", "answers": {"text": [], "answer_start": []}},
        "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "completion": {"prompt": "a", "completion": ""},
    }[kind]  # fmt: skip
    documents, quarantined = read(objects(good, row, good), kind=kind, maximum_row=700)
    assert len(documents) == 2
    assert [(row["reason"], row["line"]) for row in quarantined] == [(reason, 2)]


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("a", "a"),
        (" a ", "a"),
        (3, "3"),
        (3.0, "3"),
        (-0.0, "0"),
        (0.5, "0.5"),
        (True, "true"),
        (False, "false"),
    ],
)
def test_what_may_be_a_label(objects, value, label):
    assert [row["label"] for row in read(objects({"text": "a", "label": value}))[0]] == [label]


def test_labels_of_one_cell_are_cut_at_the_separator(table):
    path = table("text,labels\none,b; a;b;\ntwo,\n")
    documents, _ = read(path, kind="labels", separator=";")
    assert [row["labels"] for row in documents] == [["a", "b"], []]


def test_labels_of_one_cell_need_a_separator(table):
    with pytest.raises(SourceError, match=r"wrong_type") as caught:
        read(table("text,labels\none,a;b\n"), kind="labels")
    assert "sources.text.separator" in str(caught.value)


def test_nulls_of_parquet_are_real(tmp_path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": ["null", None, "x"], "label": [1, 2, None]}), path)
    documents, quarantined = read(path)
    assert [(row["text"], row["label"]) for row in documents] == [("null", "1")]
    assert [(row["reason"], row["line"], row["raw"]) for row in quarantined] == [
        ("no_text", 2, b"[null, 2]"),
        ("no_label", 3, b'["x", null]'),
    ]


# Columns, ids, splits


def test_columns_may_have_other_names(table):
    path = table("tweet,other,mood\none,x,a\n")
    assert texts(path, columns={"text": "tweet", "label": "mood"}) == ["one"]


def test_ids_of_ones_own(objects):
    rows = [{"text": "a", "label": "b", "id": id} for id in ("x", 7, "", None, 1.5)]
    rows += [{"text": None, "label": "b", "id": "y"}]
    documents, quarantined = read(objects(*rows), id="id")
    assert [row["id"] for row in documents] == ["x", "7"]
    assert [(row["id"], row["reason"]) for row in quarantined] == [
        (None, "no_id"), (None, "no_id"), (None, "wrong_type"), ("y", "no_text")
    ]  # fmt: skip


def test_an_id_is_no_part_of_the_content(table):
    documents, _ = read(table("id,text,label\n1,a,b\n2,a,b\n"), id="id")
    assert documents[0]["content"] == documents[1]["content"]


@pytest.mark.parametrize(
    ("value", "split"),
    [("train", "train"), ("Dev", "validation"), (" VAL", "validation"), ("valid", "validation"), ("validation", "validation"), ("test", "test")],
)  # fmt: skip
def test_splits_of_ones_own(table, value, split):
    assert [row["split"] for row in read(table(f"part,text,label\n{value},a,b\n"), split="part")[0]] == [
        split
    ]


@pytest.mark.parametrize("value", ["", "  ", None, float("nan")])
def test_a_blank_split_is_one_that_is_not_given(objects, value):
    rows = [{"part": part, "text": "a", "label": "b"} for part in ("test", value)]
    documents, quarantined = read(objects(*rows), split="part")
    assert ([row["split"] for row in documents], quarantined) == (["test", None], [])


@pytest.mark.parametrize("value", ["holdout", "3", "-"])
def test_a_split_that_is_none_of_three(table, value):
    _, quarantined = read(table(f"part,text,label\ntrain,a,b\n{value},a,b\n"), split="part")
    assert [row["reason"] for row in quarantined] == ["unknown_split"]


def test_splits_of_files_hold_and_yield_to_a_column(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("text,label,part\none,a,dev\n")
    assert [(row["split"], row["place"]) for row in read(tmp_path)[0]] == [
        ("test", "test.csv:2"),
        ("train", "train.csv:2"),
    ]
    (tmp_path / "more.csv").write_text("text,label,part\none,a,\n")  # no name of a split, which is no matter
    assert [row["split"] for row in read(tmp_path, split="part")[0]] == [None, "validation", "validation"]


# Files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "table.csv is empty"),
        ("\n\n", "table.csv is empty"),
        ("text,label\n", "table.csv holds a header and no rows"),
        ("text,label\none\n", r"no usable row: all 1 are faulty, the first at table.csv:2: .*\(missing_columns\)"),
        ("txt,label\none,a\n", r"has no column 'text'; did you mean 'txt'\?"),
        ("text,text,label\none,two,a\n", "has 2 columns called 'text'"),
        ('"text,label\none,a\n', "the header cannot be read"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-LFS pointer"),
        (b"PK\x03\x04\0\0", "is a zip or Excel file"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(table, content, message):
    with pytest.raises(SourceError, match=message):
        read(table(content))


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match="no such path"):
        read(tmp_path / "a.csv")


def test_two_names_need_two_columns(table):
    with pytest.raises(SourceError, match="text and label are both read from column 'text'"):
        read(table("text,label\none,a\n"), columns={"label": "text"})


def test_a_name_that_the_kind_does_not_have(table):
    with pytest.raises(ParamsError, match=r"rows of kind label have no 'lable'; did you mean 'label'\?"):
        read(table("text,label\none,a\n"), columns={"lable": "mood"})


def test_measurements_are_no_classes(table):
    rows = "".join(f"text {n},{n / 7}\n" for n in range(1, 40))
    with pytest.raises(
        DataError, match=r"column 'label' holds more than 20 different numbers such as 0\.\d+"
    ):
        read(table("text,label\n" + rows), rows=5)


def test_whole_numbers_and_names_among_numbers_are_classes(table):
    whole = "".join(f"text {n},{n}\n" for n in range(40))
    named = "".join(f"text {n},{n / 7}\n" for n in range(1, 40)) + "text,v1\n"
    assert len(texts(table("text,label\n" + whole))) == 40
    assert len(texts(table("text,label\n" + named), rows=5)) == 40


# Nothing is lost


def _count(path, **layout):
    documents, quarantined = read(path, **layout)
    return len(documents) + len(quarantined), Counter(row["reason"] for row in quarantined)


@given(st.lists(st.binary(max_size=12).filter(lambda row: not set(row) & set(b'\r\n"')), max_size=12))
def test_lines_of_csv_in_are_documents_and_quarantined_rows_out(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("bytes") / "table.csv"
    path.write_bytes(b"text,label\nfirst,a\n" + b"\n".join(rows) + b"\nlast,b\n")
    total, _ = _count(path)
    assert total == 2 + sum(map(bool, rows))


@given(st.lists(st.binary(max_size=12), max_size=12))
def test_whatever_the_bytes_every_line_is_in_some_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("bytes") / "table.csv"
    path.write_bytes(b"text,label\nfirst,a\n" + b"\n".join(rows) + b"\nlast,b\n")
    documents, quarantined = read(path)
    assert documents[0]["text"] == "first"
    found = [row["text"] for row in documents] + [
        row["raw"].decode("utf-8", "replace") for row in quarantined
    ]
    assert "last" in " ".join(found)


@given(st.lists(st.binary(max_size=20).filter(lambda row: b"\n" not in row), max_size=12), st.booleans())
def test_lines_of_json_in_are_documents_and_quarantined_rows_out(tmp_path_factory, rows, replace):
    path = tmp_path_factory.mktemp("bytes") / "table.jsonl"
    path.write_bytes(b'{"text": "a", "label": "b"}\n' + b"\n".join(rows) + b"\n")
    total, _ = _count(path, undecodable="replace" if replace else "quarantine")
    blank = [row for row in rows if not row or row.decode("utf-8", "surrogateescape").isspace()]
    assert total == 1 + len(rows) - len(blank)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_no_value_of_any_column_can_stop_a_kind(tmp_path_factory, kind, data):
    names = KINDS[kind].wanted()
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, JSON)), min_size=1, max_size=3))
    path = tmp_path_factory.mktemp("values") / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    count = 0
    with suppress(SourceError):  # where no row is usable, which is told after the last shard
        for shard in sources.read(path, Layout(kind=kind)):
            count += len(shard.documents) + len(shard.quarantined)
    assert count == len(rows)


# Columns that come along


def along(path, **layout):
    documents, quarantined = read(path, **layout)
    names = [f"{shards.KEPT}{name}" for name in layout["keep"]]
    return [tuple(row[name] for name in names) for row in documents], quarantined


def test_columns_come_along_as_text_and_what_is_missing_is_null(objects, table):
    rows = [
        {"channel": " web ", "year": 2019},
        {"channel": "", "year": 2019.0},
        {"year": None},
        {"channel": True, "year": 0.5},
    ]
    path = objects(*({"text": "a", "label": "b"} | row for row in rows))
    found, quarantined = along(path, keep=("channel", "year"))
    assert found == [("web", "2019"), (None, "2019"), (None, None), ("true", "0.5")]
    assert not quarantined
    assert along(table("year,text,label\n2019,a,b\n,a,b\n"), keep=("year",))[0] == [("2019",), (None,)]


def test_dates_and_missing_numbers_of_a_parquet_file_come_along(tmp_path):
    columns = {
        "text": ["a", "b"], "label": ["x", "x"], "day": [date(2026, 1, 31), None], "stars": [4.0, float("nan")],
    }  # fmt: skip
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    found, _ = along(tmp_path / "t.parquet", keep=("day", "stars"))
    assert found == [("2026-01-31", "4"), (None, None)]


@pytest.mark.parametrize(
    ("cell", "reason"), [(["a"], "wrong_type"), ({"a": 1}, "wrong_type"), ("\ud800", "lone_surrogate")]
)
def test_a_value_that_cannot_come_along_sets_its_row_aside(objects, cell, reason):
    good = {"text": "a", "label": "b", "channel": "web"}
    found, [row] = along(objects(good, good | {"channel": cell}), keep=("channel",))
    assert found == [("web",)]
    assert row["reason"] == reason
    assert "column 'channel' holds" in row["detail"]


def test_what_comes_along_is_no_part_of_the_content(objects):
    row = {"text": "a", "label": "b", "id": "1", "split": "train", "channel": "web"}
    alone, *_ = read(objects(row))[0]
    more, *_ = read(objects(row), id="id", split="split", keep=("channel",))[0]
    assert more.pop(f"{shards.KEPT}channel") == "web"
    assert more == alone | {"id": "1", "split": "train"}


@pytest.mark.parametrize(
    ("keep", "layout", "message"),
    [
        (("cluster",), {}, "sources.text.keep: 'cluster' is what rows call a column of their own: rename it"),
        (("tokens",), {"kind": "tags"}, "'tokens' is read as tokens already"),
        (("target",), {"kind": "prefix-remainder"}, "'target' is what rows call a column of their own"),
        (("mood",), {"columns": {"label": "mood"}}, "column 'mood' is read as label already: leave it out"),
        (("part",), {"split": "part"}, "column 'part' is read as split already: leave it out"),
        (("text", "content"), {}, "'text' is read as text already.*\n.*'content' is what rows call"),
    ],
)
def test_a_column_that_a_row_has_already_cannot_come_along(table, keep, layout, message):
    with pytest.raises(ParamsError, match=message):
        read(table("text,label\na,b\n"), keep=keep, **layout)


def test_a_column_to_come_along_that_is_not_there_is_named(table, tmp_path):
    with pytest.raises(SourceError, match=r"table\.csv has no column 'chanel'; did you mean 'channel'"):
        read(table("text,label,channel\na,b,c\n"), keep=("chanel",))
    (tmp_path / "texts" / "good").mkdir(parents=True)
    (tmp_path / "texts" / "good" / "1.txt").write_text("a")
    with pytest.raises(SourceError, match="which give text and label, not kept column channel"):
        read(tmp_path / "texts", keep=("channel",))
