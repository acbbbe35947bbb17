import gzip
import hashlib
import json

import pytest

from tasks.errors import SourceError
from tasks.text import identities
from tasks.text.reading import erase, sources
from tasks.text.reading.erase import Place
from tasks.text.reading.layout import Layout

QUARANTINING = Layout()
REPLACING = Layout(undecodable="replace")
OWN = Layout(id="key")
CSV = b'text,label\r\nkeep me,a\r\n"take ""me"",\nall of it",b\r\n\r\nkeep me too,a\n'
CASES = [
    (
        "t.csv",
        CSV,
        QUARANTINING,
        'take "me",\nall of it',
        CSV.replace(b'"take ""me"",\nall of it",b\r\n', b""),
    ),
    ("t.csv", b"text,label\nkeep,a\ntake,b", QUARANTINING, "take", b"text,label\nkeep,a\n"),
    ("t.csv", b"text,label\rtake,a\rkeep,b\r", QUARANTINING, "take", b"text,label\rkeep,b\r"),
    ("t.tsv", b"text\tlabel\ntake\ta\n\nkeep\xe9\tb\n", REPLACING, "take", b"text\tlabel\n\nkeep\xe9\tb\n"),
    ("t.csv", b"text,label\nkeep,b\ntak\xe9,a\n", REPLACING, "tak\ufffd", b"text,label\nkeep,b\n"),
    (
        "t.jsonl",
        b'\xef\xbb\xbf{"text": "take", "label": "a"}\n{"text": "k\\r", "label": "b"}\n',
        QUARANTINING,
        "take",
        b'{"text": "k\\r", "label": "b"}\n',
    ),
    (
        "t.csv",
        "text,label\nkéep,a\ntàke,b\n".encode("cp1252"),
        Layout(encoding="cp1252"),
        "tàke",
        "text,label\nkéep,a\n".encode("cp1252"),
    ),
]


def digest(text, label):
    content = hashlib.blake2b(f"{text}\0{label}\0".encode(), digest_size=8).digest()
    return identities.digest(identities.stem(int.from_bytes(content, "little")))


def contents(path, layout):
    return [row for shard in sources.read(path, layout) for row in shard.documents["text"].to_pylist()]


@pytest.mark.parametrize(("name", "data", "layout", "text", "left"), CASES)
def test_a_row_leaves_and_no_other_byte_changes(tmp_path, name, data, layout, text, left):
    path = tmp_path / name
    path.write_bytes(data)
    path.chmod(0o640)
    before = contents(path, layout)
    digests = {digest(text, label) for label in "ab"}
    (place,) = erase.places(path, layout, digests)
    erase.remove_lines(path, layout, {place.line})
    assert path.read_bytes() == left
    assert path.stat().st_mode & 0o777 == 0o640
    before.remove(text)
    assert contents(path, layout) == before
    assert erase.places(path, layout, digests) == []


def test_rows_are_found_by_their_own_id_or_content_also_where_they_are_faulty(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("key,text,label\nann,one,a\nbob,two,b\ncat,three,\nann,four,a\n,five,a\n")
    assert erase.places(path, OWN, {identities.digest("ann"), identities.digest("cat")}) == [
        Place("t.csv", 2), Place("t.csv", 5), Place("t.csv", 4),
    ]  # fmt: skip
    shards = list(sources.read(path, OWN))
    unread = next(row for shard in shards for row in shard.quarantined.to_pylist() if row["id"] is None)
    assert erase.places(path, OWN, {identities.forgotten(unread)}) == [Place("t.csv", 6)]


def test_a_folder_s_tables_are_named(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name, "label": "x"}) + "\n")
    assert erase.places(tmp_path, Layout(), {digest("b.jsonl", "x")}) == [Place("b.jsonl", 1)]


@pytest.mark.parametrize(
    ("name", "data", "layout", "message"),
    [
        ("t.csv.gz", gzip.compress(CSV, mtime=0), Layout(), "is not one CSV, TSV or JSON lines file"),
        ("t.parquet", b"PAR1", Layout(), "is not one CSV, TSV or JSON lines file"),
        ("t.csv", "text,label\na,b\n".encode("utf-16"), Layout(encoding="auto"), "is utf-16, whose lines"),
        ("t.csv", b"text,label\na,b\n", Layout(encoding="utf-16-be"), "is utf-16-be, whose lines"),
    ],
)
def test_what_has_no_lines_is_refused(tmp_path, name, data, layout, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=message):
        erase.check_lines(tmp_path / name, layout)


def test_a_table_that_changed_meanwhile_stays_as_it_is(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_bytes(b"text,label\none,a\ntwo,b\n")
    rows = erase._rows(path, Layout(), {3})
    path.write_bytes(b"text,label\nnew,a\none,a\ntwo,b\n")
    monkeypatch.setattr(erase, "_rows", lambda *_: rows)
    with pytest.raises(SourceError, match=r"t.csv:3 is not the row to be forgotten"):
        erase.remove_lines(path, Layout(), {3})
    assert path.read_bytes() == b"text,label\nnew,a\none,a\ntwo,b\n"
    assert list(tmp_path.iterdir()) == [path]
