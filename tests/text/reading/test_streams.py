import gzip
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ParamsError, SourceError
from tasks.text.reading import streams

REPOSITORY = Path(__file__).parents[3]
FRENCH = (
    "Les élèves étaient très étonnés: où était passée la fenêtre? Déjà l'été s'achevait à Orléans, et la pluie "
    "tombait sans cesse sur les toits. Personne n'espérait plus retrouver le chemin, ni même les clés.\n"
)
GERMAN = "Die Straße führt über die Brücke, während die Schüler müde nach Hause gehen.\n"
RUSSIAN = "Ученики были очень удивлены: куда делось окно? Лето уже заканчивалось.\n"
ACCENTED = FRENCH * 10


def lines(path, encoding="utf-8", *, ends="", maximum_row=1000, maximum_bytes=10**6):
    return list(
        streams.lines(path, encoding, ends=ends, maximum_row=maximum_row, maximum_bytes=maximum_bytes)
    )


def put(folder, content, name="a.csv"):
    path = folder / name
    path.write_bytes(content)
    return path


def packed(content, codec):
    return (
        gzip.compress(content, mtime=0)
        if codec == "gzip"
        else bytes(pa.compress(content, codec, asbytes=True))
    )


@pytest.mark.parametrize(("name", "codec"), [("a.csv.gz", "gzip"), ("a.CSV.ZST", "zstd")])
def test_a_packed_file_reads_as_if_it_were_not(tmp_path, name, codec):
    content = ACCENTED.encode()
    path = put(tmp_path, packed(content, codec), name)
    assert "".join(lines(path)) == ACCENTED
    assert streams.suffix(path) == ".csv"


def test_gzip_members_are_read_one_after_another(tmp_path):
    path = put(tmp_path, gzip.compress(b"one\n", mtime=0) + gzip.compress(b"two\n"), "a.csv.gz")
    assert lines(path) == ["one\n", "two\n"]


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_unpacking_stops_at_its_cap(tmp_path, codec):
    path = put(tmp_path, packed(b"row\n" * 1000, codec), "a.csv.gz" if codec == "gzip" else "a.csv.zst")
    assert len(lines(path, maximum_bytes=4000)) == 1000
    with pytest.raises(
        SourceError, match=r"a\.csv\.(gz|zst) unpacks to more than 3999 bytes: .*maximum_bytes"
    ):
        lines(path, maximum_bytes=3999)


@pytest.mark.parametrize(
    "content", [gzip.compress(bytes(range(256)) * 20, mtime=0)[:300], b"\x1f\x8bnothing"]
)
def test_a_torn_archive_is_told(tmp_path, content):
    with pytest.raises(SourceError, match=r"a\.csv\.gz cannot be unpacked: .*fetch it again"):
        lines(put(tmp_path, content, "a.csv.gz"))


def test_a_bomb_of_one_line_never_fills_memory(tmp_path):
    bomb = tmp_path / "bomb.csv.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as stream:
        for _ in range(300):
            stream.write(b"0" * 2**20)
    assert bomb.stat().st_size < 2 * 2**20
    code = (
        "import resource, sys; from pathlib import Path; from tasks.text.reading import streams\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "limits = dict(ends='', maximum_row=2**16, maximum_bytes=2**30)\n"
        "sizes = [len(line) for line in streams.lines(Path(sys.argv[1]), 'utf-8', **limits)]\n"
        "print(sizes, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, bomb], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    sizes, grown = done.stdout.rsplit(" ", 1)
    assert sizes == f"[{2**16 + 1}]"
    assert int(grown) < 64 * 2**10  # kilobytes; the line has 300 MB


def test_the_rest_of_a_long_line_is_passed_over(tmp_path):
    path = put(tmp_path, b"head\n" + b"x" * 5000 + b"\r\nnext\n" + b"y" * 2000)
    assert lines(path, maximum_row=9) == ["head\n", "x" * 10, "next\n", "y" * 10]


@pytest.mark.parametrize(
    ("ends", "expected"), [("", ["a\r", "b\r\n", "c\n", "d"]), ("\n", ["a\rb\r\n", "c\n", "d"])]
)
def test_where_lines_end(tmp_path, ends, expected):
    assert lines(put(tmp_path, b"a\rb\r\nc\nd"), ends=ends) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, encoding):
    content = "été\n".encode("utf-8-sig" if encoding == "utf-8" else encoding)
    assert lines(put(tmp_path, content), encoding) == ["été\n"]


def test_a_torn_byte_condemns_its_line_alone_and_can_be_had_back(tmp_path):
    found = lines(put(tmp_path, b"one\n\xe9t\xe9\ntwo\n"))
    assert [streams.is_torn(line) for line in found] == [False, True, False]
    assert streams.mend(found[1]) == "\ufffdt\ufffd\n"
    assert streams.encode(found[1], "utf-8") == b"\xe9t\xe9\n"


def test_utf_16_tears_at_half_a_pair_and_at_half_a_character(tmp_path):
    content = "one\n".encode("utf-16-le") + b"\x00\xd8" + "\ntwo\n".encode("utf-16-le") + b"x"
    found = lines(put(tmp_path, content), "utf-16-le")
    assert [streams.is_torn(line) for line in found] == [False, True, False, True]


@given(st.binary(max_size=60))
def test_decoding_loses_no_byte(data):
    assert streams.encode(data.decode("utf-8", streams._handler()), "utf-8") == data


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"plain,a\n", "utf-8"),
        (ACCENTED.encode(), "utf-8"),
        (ACCENTED.encode() + b"\xe9 one stray byte\n", "utf-8"),
        (ACCENTED.encode("utf-8-sig"), "utf-8"),
        (ACCENTED.encode("utf-16"), "utf-16"),
        (ACCENTED.encode("utf-32"), "utf-32"),
        ("é".encode() * 2**19 + b"\xc3", "utf-8"),
        (b"x" + "é".encode() * 2**19, "utf-8"),
    ],
    ids=["ascii", "utf-8", "stray", "mark", "utf-16", "utf-32", "full sample", "cut sample"],
)
def test_auto_tells_the_encoding_once_a_file(tmp_path, content, expected):
    assert streams.encoding(put(tmp_path, content), "auto", 10**9) == expected


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH * 3, "cp1252"),
        (GERMAN * 5, "cp1252"),
        (RUSSIAN * 5, "cp1251"),
    ],
)
def test_auto_guesses_where_utf_8_does_not_fit(tmp_path, text, encoding, caplog):
    path = put(tmp_path, text.encode(encoding))
    guessed = streams.encoding(path, "auto", 10**9)
    assert "".join(lines(path, guessed, maximum_row=10**6)) == text
    assert f"a.csv is read as {guessed}, a guess" in caplog.text


def test_auto_looks_into_packed_files(tmp_path):
    path = put(tmp_path, gzip.compress(ACCENTED.encode("utf-16")), "a.csv.gz")
    assert streams.encoding(path, "auto", 10**9) == "utf-16"


@pytest.mark.parametrize(
    ("name", "message"),
    [("utf-99", "no encoding 'utf-99'"), ("base64", "no encoding"), ("undefined", "decodes no text")],
)
def test_an_unknown_encoding_is_a_fault_of_the_params(tmp_path, name, message):
    with pytest.raises(ParamsError, match=message):
        streams.encoding(put(tmp_path, b"a"), name, 10)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.csv", "a git-LFS pointer.*git lfs pull"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a.parquet", "a git-LFS pointer"),
        (b"PK\x03\x04\0\0", "a.xlsx", "a zip or Excel file"),
        (b"\xd0\xcf\x11\xe0\0", "a.xls", "an old Excel file"),
        (b"%PDF-1.7", "a.csv", "a PDF"),
        (b"PAR1\0", "a.csv", r"a Parquet file: give it the suffix \.parquet"),
        (b"ARROW1\0\0", "a.csv", r"an Arrow file: give it the suffix \.arrow"),
        (b"\x1f\x8b\x08", "a.csv", r"gzip-compressed: give it the suffix \.gz"),
        (b"\x28\xb5\x2f\xfd", "a.csv", r"zstd-compressed: give it the suffix \.zst"),
        (b"\n <!DOCTYPE html><title>Sign in", "a.csv", "an HTML page"),
        (b"x" * 257 + b"ustar\x00", "a.csv", "a tar archive"),
        (gzip.compress(b"<html>", mtime=0), "a.csv.gz", "an HTML page"),
        (gzip.compress(b"PAR1", mtime=0), "a.csv.gz", "a Parquet file"),
    ],
)  # fmt: skip
def test_what_is_no_table_is_named(tmp_path, content, name, message):
    with pytest.raises(SourceError, match=f"^{name} is {message}"):
        streams.refuse_other_formats(put(tmp_path, content, name), 10**6)


@pytest.mark.parametrize(("content", "name"), [(b"PAR1", "a.parquet"), (b"a,b", "a.csv"), (b"", "a.csv"), (gzip.compress(b"", mtime=0), "a.gz")])  # fmt: skip
def test_what_may_be_a_table_passes(tmp_path, content, name):
    streams.refuse_other_formats(put(tmp_path, content, name), 10**6)
