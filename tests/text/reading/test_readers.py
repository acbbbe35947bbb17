import gzip
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import references
from tasks.errors import SourceError
from tasks.text.reading import columnar, readers, separated, streams
from tasks.text.reading.layout import Layout

WANTED = {"text": "text", "label": "label"}


def tables(path, **layout):
    """Name, split and (line, cells or reason) of each table."""
    found = readers.tables(path, WANTED, Layout(**layout))
    return [
        (table.name, table.split, [(row.line, row.fault[0] if row.fault else list(row.cells)) for row in table.rows])
        for table in found
    ]  # fmt: skip


def rows(path, **layout):
    [(_, _, found)] = tables(path, **layout)
    return found


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(*objects):
    return "".join(item if isinstance(item, str) else json.dumps(item) + "\n" for item in objects)


ONE = {"text": "one", "label": "a"}
TWO = {"text": "two", "label": "b"}


# CSV: that faults cost their own line, in blocks and between them


def test_blocks_and_single_records_say_the_same(tmp_path, monkeypatch):
    content = 'text,label\none,a\n\n"two\nlines",b\n"open,a\nthree,c\n"x" y,d\nfour,e,f\nlast,g'
    path = put(tmp_path / "a.csv", content)
    expected = [
        (2, ["one", "a"]), (4, ["two\nlines", "b"]), (6, "unclosed_quote"), (7, ["three", "c"]),
        (8, "unclosed_quote"), (9, "extra_columns"), (10, ["last", "g"]),
    ]  # fmt: skip
    for block in (1, 12, 30, 2**16):
        monkeypatch.setattr(separated, "BLOCK", block)
        assert rows(path) == expected


PIECES = st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "a", "é", "\n\n", '"x",y\n', "text,label\n"])


@given(st.lists(PIECES, max_size=30).map("".join), st.sampled_from([1, 7, 40]))
def test_the_size_of_blocks_changes_nothing(tmp_path_factory, content, block):
    path = put(tmp_path_factory.mktemp("blocks") / "a.csv", "text,label\n" + content)
    whole = rows(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separated, "BLOCK", block)
        assert rows(path) == whole


def test_a_quote_open_for_too_long_is_given_up(tmp_path):
    body = "".join(f"row {number},a\n" for number in range(separated.LONGEST_RECORD + 5))
    found = rows(put(tmp_path / "a.csv", 'text,label\n"open,a\n' + body))
    assert found[0] == (2, "unclosed_quote")
    assert len(found) == separated.LONGEST_RECORD + 6


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_row_too_large_costs_itself_and_is_not_held(tmp_path, name):
    content = b"text,label\none,a\n" + b"x" * 5000 + b',b\n"' + b"y" * 40 + b'\n",b\ntwo,b\n'
    path = put(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
    assert rows(path, maximum_row=30) == [
        (2, ["one", "a"]), (3, "too_large"), (4, "too_large"), (5, "unclosed_quote"), (6, ["two", "b"])
    ]  # fmt: skip
    held = [
        len(row.raw) for table in readers.tables(path, WANTED, Layout(maximum_row=30)) for row in table.rows
    ]
    assert max(held) == 31


def test_a_row_is_measured_in_bytes(tmp_path):
    path = put(tmp_path / "a.csv", "text,label\néééééééé,a\neeeeeeee,a\n")
    assert rows(path, maximum_row=12) == [(2, "too_large"), (3, ["eeeeeeee", "a"])]


def test_an_open_quote_holds_no_more_than_a_row_may_have(tmp_path):
    path = put(tmp_path / "a.csv", 'text,label\n"open,a\n' + "some text,a\n" * 50)
    found = rows(path, maximum_row=100)
    assert (found[0], len(found)) == ((2, "unclosed_quote"), 51)


# JSON lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken\n", "malformed"),
        ("[1]\n", "malformed"),
        ('"text"\n', "malformed"),
        ("[" * 100_000 + "\n", "malformed"),
        ('{"label": ' + "1" * 5000 + "}\n", "malformed"),
        ('{"text": "a", "text": "b", "label": "c"}\n', "duplicate_key"),
        ('{"text": "a", "label": "c", "more": {"x": 1, "x": 2}}\n', "duplicate_key"),
        (b'{"text": "\xe9", "label": "a"}\n', "undecodable"),
        ('{"text": "' + "x" * 200_000 + '"}\n', "too_large"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_a_faulty_line_costs_itself(tmp_path, line, reason, name):
    line = line if isinstance(line, bytes) else line.encode()
    path = put(tmp_path / name, lines(ONE).encode() + line + b"\n" + lines(TWO).encode())
    assert rows(path, maximum_row=150_000) == [(1, ["one", "a"]), (2, reason), (4, ["two", "b"])]


def test_what_is_missing_in_an_object_is_null(tmp_path):
    path = put(tmp_path / "a.jsonl", lines({"text": "one"}, ONE))
    assert rows(path) == [(1, ["one", None]), (2, ["one", "a"])]


def test_bytes_in_json_may_be_replaced(tmp_path):
    path = put(tmp_path / "a.jsonl", b'{"text": "\xe9", "label": "a"}\n')
    [table] = readers.tables(path, WANTED, Layout(undecodable="replace"))
    assert [(list(row.cells), row.torn) for row in table.rows] == [(["\ufffd", "a"], True)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "a.jsonl is empty"),
        ("a.jsonl", "\n \n", "a.jsonl is empty"),
        ("a.json", ' [{"text": "a"},\n', r"is one JSON array; JSON lines are wanted.*jq -c"),
        ("a.jsonl", lines({"txt": "a", "label": "b"}), r"has no column 'text'; did you mean 'txt'\?"),
    ],
)
def test_a_file_of_json_that_is_no_table_is_refused(tmp_path, name, content, message):
    with pytest.raises(SourceError, match=message):
        rows(put(tmp_path / name, content))


# Parquet and Arrow


def write(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    elif path.suffix == ".feather":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    else:
        with pa.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


COLUMNAR = pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
SMALL = pa.table({"n": [1, 2], "label": ["a", "b"], "text": ["one", None]})


@COLUMNAR
def test_columns_are_read_by_name_and_rows_counted(tmp_path, name, monkeypatch):
    monkeypatch.setattr(columnar, "BATCH", 1)
    assert rows(write(tmp_path / name, SMALL)) == [(1, ["one", "a"]), (2, [None, "b"])]


@COLUMNAR
@pytest.mark.parametrize("undecodable", ["quarantine", "replace"])
def test_bytes_that_are_no_utf_8_condemn_their_row(tmp_path, name, undecodable):
    torn = pa.array([b"one", b"\xe9", None], pa.binary()).view(pa.string())
    path = write(tmp_path / name, pa.table({"text": torn, "label": ["a", "b", "c"]}))
    second = "undecodable" if undecodable == "quarantine" else ["\ufffd", "b"]
    assert rows(path, undecodable=undecodable) == [(1, ["one", "a"]), (2, second), (3, [None, "c"])]


@COLUMNAR
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no whole"),
        (b"PAR1 and no more", "no whole"),
        (b"ARROW1 and no more", "no whole"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_a_torn_file_is_refused(tmp_path, name, content, message):
    if content[:4] == b"PAR1" and name != "a.parquet":
        message = "a Parquet file"
    if content[:4] == b"ARRO" and name == "a.parquet":
        message = "an Arrow file"
    with pytest.raises(SourceError, match=message):
        rows(put(tmp_path / name, content))


@COLUMNAR
def test_a_column_must_be_there_once(tmp_path, name):
    with pytest.raises(SourceError, match=r"has no column 'label'; did you mean 'labels'\?"):
        rows(write(tmp_path / name, pa.table({"text": ["a"], "labels": ["b"]})))
    twice = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "label", "label"])
    with pytest.raises(SourceError, match="has 2 columns called 'label'"):
        rows(write(tmp_path / name, twice))


# What `datasets` saved


@pytest.fixture
def data_set():
    import datasets

    names = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    return datasets.Dataset.from_dict(
        {"text": ["one", "two", "three"], "label": [0, 1, -1]}, features=features
    )


def test_a_saved_data_set_gives_names_for_class_numbers(tmp_path, data_set):
    data_set.save_to_disk(tmp_path / "saved", num_shards=2)
    before = sorted(tmp_path.rglob("*"))
    found = tables(tmp_path / "saved")
    assert [cells for _, _, rows in found for _, cells in rows] == [
        ["one", "bad"],
        ["two", "good"],
        ["three", None],
    ]
    assert {split for _, split, _ in found} == {None}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_saved_dictionary_carries_its_splits(tmp_path, data_set):
    import datasets

    datasets.DatasetDict(train=data_set, validation=data_set, test=data_set).save_to_disk(tmp_path / "saved")
    found = [(name, split, len(rows)) for name, split, rows in tables(tmp_path / "saved")]
    assert found == [
        (f"{split}/data-00000-of-00001.arrow", split, 3) for split in ("train", "validation", "test")
    ]


def test_a_saved_dictionary_of_other_names_has_no_splits(tmp_path, data_set):
    import datasets

    datasets.DatasetDict(train=data_set, unsupervised=data_set).save_to_disk(tmp_path / "saved")
    assert [split for _, split, _ in tables(tmp_path / "saved")] == [None, None]


def test_a_saved_dictionary_with_more_than_its_splits_is_refused(tmp_path, data_set):
    import datasets

    datasets.DatasetDict(train=data_set, test=data_set, extra=data_set).save_to_disk(tmp_path / "saved")
    with pytest.raises(SourceError, match=r"into test and train, but extra/data-\S+ is named for no split"):
        tables(tmp_path / "saved")


@pytest.mark.parametrize("name", ["../secret.arrow", ".secret.arrow", "linked/secret.arrow", "none.arrow"])
def test_a_saved_data_set_reads_no_file_but_its_own(tmp_path, data_set, name):
    data_set.save_to_disk(tmp_path / "saved")
    secret = next((tmp_path / "saved").glob("*.arrow"))
    (tmp_path / "linked").mkdir()
    (tmp_path / "saved" / "linked").symlink_to(tmp_path / "linked")
    for place in ("secret.arrow", "saved/.secret.arrow", "linked/secret.arrow"):
        put(tmp_path / place, secret.read_bytes())
    names = [name, str(secret.with_name("secret.arrow").parent.parent / "secret.arrow")]
    for named in names:
        put(tmp_path / "saved" / "state.json", json.dumps({"_data_files": [{"filename": named}]}))
        with pytest.raises(SourceError) as caught:
            tables(tmp_path / "saved")
        assert f"state.json names {named!r}, which is no file of the data set" in str(caught.value)


def test_a_saved_data_set_may_be_linked_file_by_file(tmp_path, data_set):
    """As the Hub's cache keeps what it fetched."""
    data_set.save_to_disk(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert [len(rows) for _, _, rows in tables(tmp_path / "snapshot")] == [3]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "../test"], r"dataset_dict\.json names '\.\./test', which is no folder in it"),
        (["a/b"], r"dataset_dict\.json names 'a/b', which is no folder in it"),
        ([".."], r"\.\. lacks a whole state\.json"),
        (["validation"], r"validation lacks a whole state\.json"),
        ([["train"]], r"lacks a whole dataset_dict\.json"),
        (None, r"lacks a whole dataset_dict\.json"),
    ],
)
def test_a_saved_dictionary_has_its_splits_inside(tmp_path, data_set, splits, message):
    data_set.save_to_disk(tmp_path / "saved" / "train")
    data_set.save_to_disk(tmp_path / "test")
    data_set.save_to_disk(tmp_path / "saved" / "a" / "b")
    put(tmp_path / "state.json", '{"_data_files": []}')
    put(tmp_path / "saved" / "dataset_dict.json", json.dumps({"splits": splits} if splits else {}))
    with pytest.raises(SourceError, match=message):
        tables(tmp_path / "saved")


def test_all_that_is_read_of_a_saved_dictionary_is_in_the_inventory(tmp_path, data_set):
    import datasets

    datasets.DatasetDict(train=data_set, test=data_set).save_to_disk(tmp_path)
    listed = {file.name for file in references.inventory_text(tmp_path)}
    assert {name for name, _, _ in tables(tmp_path)} < listed


def test_a_saved_data_set_that_lost_its_state_is_refused(tmp_path, data_set):
    import datasets

    datasets.DatasetDict(train=data_set, test=data_set).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "test" / "state.json").unlink()
    with pytest.raises(SourceError, match=r"test lacks a whole state\.json"):
        tables(tmp_path / "saved")


def test_class_numbers_in_parquet_too_and_one_that_has_no_name(tmp_path, data_set):
    data_set.to_parquet(tmp_path / "a.parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    broken = table.set_column(1, "label", pa.array([0, 7, 1])).replace_schema_metadata(table.schema.metadata)
    parquet.write_table(broken, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet") == [(1, ["one", "bad"]), (2, "wrong_type"), (3, ["three", "good"])]


# Folders


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["dev.csv", "test.csv", "train.csv"], ["validation", "test", "train"]),
        (["data/test-00000-of-00001.csv", "data/train-00000-of-00001.csv"], ["test", "train"]),
        (["test/0000.csv", "train/0000.csv", "valid/0000.csv"], ["test", "train", "validation"]),
        (["train-1.csv", "train-2.csv"], [None, None]),
        (["more.csv", "train.csv"], [None, None]),
        (["testimonials.csv", "trainees.csv"], [None, None]),
    ],
)
def test_a_folder_of_tables_is_split_by_the_names_of_its_files(tmp_path, names, splits):
    for name in names:
        put(tmp_path / name, "text,label\none,a\n")
    put(tmp_path / ".cache" / "test.csv", "nothing")
    put(tmp_path / "README.md", "nothing")
    assert [(name, split) for name, split, _ in tables(tmp_path)] == list(zip(names, splits, strict=True))


@pytest.mark.parametrize("name", ["unsupervised.csv", "data/more-00000-of-00001.csv"])
def test_a_file_of_no_split_beside_those_of_two_is_refused(tmp_path, name):
    for other in ("train.csv", "test.csv", name):
        put(tmp_path / other, "text,label\none,a\n")
    with pytest.raises(SourceError) as caught:
        tables(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is divided into test and train, but {name} is named for no split: rename it to train…, "
        "validation… or test…, take it out of the folder, or name a column in sources.text.split"
    )


def test_a_folder_of_two_formats_is_ambiguous(tmp_path):
    put(tmp_path / "a.csv", "text,label\none,a\n")
    put(tmp_path / "a.jsonl", lines(ONE))
    with pytest.raises(SourceError, match=r"holds tables as \.csv and as \.jsonl: name one"):
        tables(tmp_path)


def test_json_beside_tables_describes_them(tmp_path):
    put(tmp_path / "a.csv", "text,label\none,a\n")
    put(tmp_path / "dataset_infos.json", "{}")
    assert [name for name, _, _ in tables(tmp_path)] == ["a.csv"]


def test_a_folder_of_texts_is_labelled_by_its_folders(tmp_path):
    put(tmp_path / "good" / "2.txt", "ein\nguter")
    put(tmp_path / "bad" / "deep" / "1.TXT", b"\xef\xbb\xbfbad")
    put(tmp_path / "bad" / "torn.txt", b"\xe9")
    put(tmp_path / "bad" / "long.txt", b"x" * 200)
    put(tmp_path / "loose.txt", "no label")
    found = [(name, split, *rows) for name, split, rows in tables(tmp_path, maximum_row=100)]
    assert found == [
        ("bad/deep/1.TXT", None, (1, ["bad", "bad"])),
        ("bad/long.txt", None, (1, "too_large")),
        ("bad/torn.txt", None, (1, "undecodable")),
        ("good/2.txt", None, (1, ["ein\nguter", "good"])),
        ("loose.txt", None, (1, ["no label", None])),
    ]


def test_a_folder_of_texts_may_be_divided_first(tmp_path):
    for name in ("train/pos/1.txt", "train/neg/1.txt", "test/pos/1.txt"):
        put(tmp_path / name, "text")
    assert [(split, rows[0][1][1]) for _, split, rows in tables(tmp_path)] == [
        ("test", "pos"), ("train", "neg"), ("train", "pos")
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["train/urls.txt", "unsup/pos/1.txt", "README.txt"])
def test_a_text_of_no_split_beside_those_of_two_is_refused(tmp_path, name):
    for other in ("train/pos/1.txt", "test/pos/1.txt", name):
        put(tmp_path / other, "text")
    with pytest.raises(
        SourceError, match=rf"but {name} is named for no split: put it into folders of its split"
    ):
        tables(tmp_path)


def test_labels_called_like_splits_are_labels(tmp_path):
    for name in ("train/1.txt", "test/1.txt"):
        put(tmp_path / name, "text")
    assert [(split, rows[0][1][1]) for _, split, rows in tables(tmp_path)] == [
        (None, "test"),
        (None, "train"),
    ]


def test_texts_alone_need_no_labels(tmp_path):
    for name in ("train/1.txt", "test/1.txt"):
        put(tmp_path / name, "text")
    found = list(readers.tables(tmp_path, {"text": "text"}, Layout(kind="text")))
    assert [(table.split, next(table.rows).cells) for table in found] == [
        ("test", ["text"]),
        ("train", ["text"]),
    ]


def test_a_folder_of_texts_gives_no_more_than_texts(tmp_path):
    put(tmp_path / "a" / "1.txt", "text")
    with pytest.raises(SourceError, match="which give text and label, not pair"):
        list(readers.tables(tmp_path, {**WANTED, "pair": "pair"}, Layout(kind="pair")))


def test_a_folder_of_nothing_that_is_known_is_refused(tmp_path):
    put(tmp_path / "a.docx", "text")
    with pytest.raises(SourceError, match=r"holds neither tables \(\.arrow, .*\) nor text files"):
        tables(tmp_path)


def test_a_file_name_of_no_characters_can_be_stored(tmp_path):
    folder = tmp_path / "label"
    folder.mkdir()
    (folder / "\udce9.txt").write_text("text")
    assert [name for name, _, _ in tables(tmp_path)] == ["label/\ufffd.txt"]


@pytest.mark.parametrize(("name", "content"), [("a.csv", b"text,label\n\xfft,a\n"), ("a.jsonl", b"\xff\n")])
def test_a_quarantined_row_can_show_its_bytes(tmp_path, name, content):
    [table] = readers.tables(put(tmp_path / name, content), WANTED, Layout())
    [row] = table.rows
    assert streams.encode(row.raw, table.encoding) == content.removeprefix(b"text,label\n")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl.gz", "a.parquet", "folder"])
def test_a_peek_shows_all_columns(tmp_path, name):
    path = tmp_path / name
    content = {
        "a.csv": b"label,text\na,one\nbroken\n",
        "a.tsv": b"label\ttext\na\tone\n",
        "a.jsonl.gz": gzip.compress(lines({"label": "a", "text": "one"}).encode()),
    }
    if name == "folder":
        put(path / "a" / "1.txt", "one")
    elif name == "a.parquet":
        write(path, pa.table({"label": ["a"], "text": ["one"]}))
    else:
        put(path, content[name])
    columns, found = readers.peek(path, Layout(), 5)
    assert sorted(columns) == ["label", "text"]
    assert found == [{"label": "a", "text": "one"}]
