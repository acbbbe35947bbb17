import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import DataError, ParamsError, SourceError
from tasks.text import sources


@pytest.fixture
def table(tmp_path):
    def write(content, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path, *, text="text", label="label", encoding="utf-8", undecodable="quarantine"):
    return sources.read(path, text=text, label=label, encoding=encoding, undecodable=undecodable)


def texts(found):
    return [document.text for document in found.documents]


def reasons(found):
    return [row.reason for row in found.quarantined]


def test_rows_are_read_with_where_they_stood(table):
    found = read(table('id,text,label\n1,one,a\n2,"two, and\nmore",b\n'))
    assert [(d.text, d.label, d.source) for d in found.documents] == [
        ("one", "a", "table.csv:2"),
        ("two, and\nmore", "b", "table.csv:3"),
    ]


@pytest.mark.parametrize("word", ["N/A", "null", "nan", "None", "NA"])
def test_words_that_other_readers_lose_are_text_and_labels(table, word):
    found = read(table(f"text,label\n{word},{word}\n"))
    assert [(d.text, d.label) for d in found.documents] == [(word, word)]


def test_a_byte_order_mark_is_no_part_of_the_header(table):
    assert texts(read(table(b"\xef\xbb\xbftext,label\none,a\n"))) == ["one"]


def test_a_tab_separated_file_is_known_by_its_suffix(table):
    assert texts(read(table("text\tlabel\none, two\ta\n", "table.tsv"))) == ["one, two"]


def test_a_nul_is_kept_for_cleaning(table):
    assert texts(read(table("text,label\no\0ne,a\n"))) == ["o\0ne"]


def test_line_ends_of_all_three_kinds(table):
    assert texts(read(table(b"text,label\r\none,a\rtwo,b\nthree,c"))) == ["one", "two", "three"]


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
    ],
)
def test_a_faulty_row_is_quarantined_alone(table, row, reason):
    row = row if isinstance(row, bytes) else row.encode()
    found = read(table(b"text,label\nbefore,a\n" + row + b'\n"after",b\nlast,a\n'))
    assert texts(found) == ["before", "after", "last"]
    assert reasons(found) == [reason]
    assert found.quarantined[0].detail.startswith("table.csv:3: ")


def test_a_quarantined_row_shows_its_bytes(table):
    found = read(table(b"text,label\n\xe9t\xe9,a\nlast,b\n"))
    assert found.quarantined[0].raw == "\\xe9t\\xe9,a\n"


def test_an_undecodable_byte_may_be_replaced_and_is_counted(table):
    found = read(table(b"text,label\n\xe9t\xe9,a\nlast,b\n"), undecodable="replace")
    assert texts(found) == ["\ufffdt\ufffd", "last"]
    assert (found.repaired, found.quarantined) == (1, ())


def test_another_encoding_decodes_the_same_bytes(table):
    assert texts(read(table("text,label\nété,a\n".encode("latin-1")), encoding="latin-1")) == ["été"]
    assert texts(read(table("text,label\nété,a\n".encode("utf-16")), encoding="utf-16")) == ["été"]


def test_a_quote_open_for_too_long_is_given_up(table):
    body = "".join(f"row {number},a\n" for number in range(sources.LONGEST_RECORD + 5))
    found = read(table('text,label\n"open,a\n' + body))
    assert (reasons(found), len(found.documents)) == (["unclosed_quote"], sources.LONGEST_RECORD + 5)


def test_ids_survive_new_rows_and_another_order(table):
    rows = ["one,a", "two,b", "one,a", "one,b"]
    old = {(d.text, d.label, d.id) for d in read(table("text,label\n" + "\n".join(rows))).documents}
    new = {
        (d.text, d.label, d.id) for d in read(table("text,label\nnew,a\n" + "\n".join(rows[::-1]))).documents
    }
    assert old < new
    assert len({id for *_, id in old}) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "table.csv is empty"),
        ("\n\n", "table.csv is empty"),
        ("text,label\n", "holds a header and no rows"),
        (
            "text,label\none\n",
            r"no usable row: all 1 are faulty, the first at table.csv:2: .*missing_columns",
        ),
        ("txt,label\none,a\n", "has no column 'text'; did you mean 'txt'?"),
        ("text,text,label\none,two,a\n", "has 2 columns called 'text'"),
        ('"text,label\none,a\n', "the header cannot be read"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a git-LFS pointer"),
        (b"PK\x03\x04\0\0", "is a zip or Excel file"),
    ],
)
def test_a_file_that_is_no_table_is_refused(table, content, message):
    with pytest.raises(SourceError, match=message):
        read(table(content))


def test_text_and_label_must_be_two_columns(table):
    with pytest.raises(SourceError, match="both read from column 'text'"):
        read(table("text,label\none,a\n"), label="text")


def test_an_unknown_encoding_is_a_fault_of_the_params(table):
    with pytest.raises(ParamsError, match="no encoding 'utf-99'"):
        read(table("text,label\none,a\n"), encoding="utf-99")


def test_measurements_are_no_classes(table):
    rows = "".join(f"text {n},{n / 7}\n" for n in range(1, 40))
    with pytest.raises(DataError, match=r"column 'label' holds 39 different numbers such as 0\.14"):
        read(table("text,label\n" + rows))


def test_whole_numbers_are_classes(table):
    found = read(table("text,label\n" + "".join(f"text {n},{n}\n" for n in range(40))))
    assert len(found.documents) == 40


@given(st.lists(st.binary(max_size=12).map(lambda row: row.replace(b"\0", b"")), max_size=12))
def test_every_row_is_read_or_quarantined_whatever_the_bytes(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("bytes") / "table.csv"
    path.write_bytes(b"text,label\nfirst,a\n" + b"\n".join(rows) + b"\nlast,b\n")
    found = read(path)
    assert texts(found)[0] == "first"
    assert "last" in " ".join(texts(found)) or "last" in " ".join(row.raw for row in found.quarantined)
    ids = [item.id for item in (*found.documents, *found.quarantined)]
    assert len(ids) == len(set(ids))
