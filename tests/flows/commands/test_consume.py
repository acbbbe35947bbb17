"""`regraft predict` on a registered champion: tables of every format, with rows that are none."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from flows.commands import consume
from tasks import params
from tasks.errors import InputError
from tasks.text import copies

SHIPPED = params.load(Path(__file__).parents[3] / "params.yaml")
TEXTS = ["good film", "bad", "film", "bad bad film", "good"]


def settings(model):
    source = ["sources.text.columns={text: text}", "sources.text.undecodable=quarantine"]
    return params.override(SHIPPED, [f"promotion.model={model}", *source])


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def ask(champions):
    def go(text, output=None, *, model="reviews"):
        return list(consume.predict(settings(model), champions, str(text), output))

    return go


@pytest.fixture
def single(ask):
    """What the champion says of each of TEXTS alone: label and probability as printed."""
    return [ask(text)[0] for text in TEXTS]


def as_csv(path, rows, separator):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, delimiter=separator).writerows([("note", "text"), *rows])


def as_objects(path, rows):
    path.write_text("".join(json.dumps({"note": n, "text": t, "more": [1]}) + "\n" for n, t in rows))


def as_parquet(path, rows):
    table = pa.table({"note": pa.array([n for n, _ in rows], pa.int8()), "text": [t for _, t in rows]})
    parquet.write_table(table, path)


def as_arrow(path, rows):
    table = pa.table({"note": [n for n, _ in rows], "text": [t for _, t in rows]})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def as_packed(path, rows):
    plain = path.with_suffix("")
    as_csv(plain, rows, ",")
    path.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()


WRITERS = {
    "a.csv": lambda path, rows: as_csv(path, rows, ","),
    "a.csv.gz": as_packed,
    "a.tsv": lambda path, rows: as_csv(path, rows, "\t"),
    "a.jsonl": as_objects,
    "a.parquet": as_parquet,
    "a.arrow": as_arrow,
}
COPIES = {"a.csv.gz": "a.predicted.csv", "a.arrow": "a.predicted.parquet"}


def rows_of(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_every_format_is_copied_in_its_order_with_the_answers_of_single_texts(ask, single, tmp_path, name):
    WRITERS[name](tmp_path / name, list(enumerate(TEXTS)))
    target = tmp_path / COPIES.get(name, name.replace("a.", "a.predicted."))
    assert ask(tmp_path / name) == [f"wrote 5 rows to {target}"]
    found = rows_of(target)
    assert [row["text"] for row in found] == TEXTS
    assert [f"{row['prediction']} ({float(row['probability']):.3f})" for row in found] == single
    assert [int(row["note"]) for row in found] == [0, 1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({name, target.name})


def test_what_else_stands_in_the_table_keeps_its_type(ask, tmp_path):
    as_objects(tmp_path / "a.jsonl", [(7, "good")])
    as_parquet(tmp_path / "b.parquet", [(7, "good")])
    ask(tmp_path / "a.jsonl")
    ask(tmp_path / "b.parquet")
    assert rows_of(tmp_path / "a.predicted.jsonl")[0].items() >= {"note": 7}.items()
    assert rows_of(tmp_path / "a.predicted.jsonl")[0]["more"] == [1]
    schema = parquet.read_schema(tmp_path / "b.predicted.parquet")
    assert (schema.field("note").type, schema.field("probability").type) == (pa.int8(), pa.float64())


VIEWS = {"text": pa.string_view(), "raw": pa.binary_view()}
NESTED = {
    "list": pa.large_list(VIEWS["text"]),
    "pair": pa.list_(VIEWS["text"], 2),
    "few": pa.list_(VIEWS["raw"]),
}


@pytest.mark.parametrize("name", ["a.arrow", "a.parquet"])
def test_strings_as_polars_writes_them_are_copied(ask, tmp_path, name):
    schema = pa.schema({**VIEWS, **NESTED, "inner": pa.struct(VIEWS), "number": pa.int8()})
    inner = {"text": "x", "raw": b"y"}
    row = {"text": "good", "raw": b"a", "list": ["b"], "pair": ["c", "d"], "few": [b"e"], "inner": inner}
    rows = [{**row, "number": 1}, {**row, "text": "", "number": 2}, {**row, "list": None, "number": 3}]
    with (
        pa.OSFile(str(tmp_path / name), "wb") as sink,
        (pa.ipc.new_file if name == "a.arrow" else parquet.ParquetWriter)(sink, schema) as writer,
    ):
        writer.write_table(pa.Table.from_pylist(rows, schema))
    ask(tmp_path / name)
    found = rows_of(tmp_path / "a.predicted.parquet")
    assert [{column: each[column] for column in schema.names} for each in found] == [rows[0], rows[2]]


def test_rows_that_are_none_are_set_aside_with_line_and_reason_and_the_gap_is_told(ask, tmp_path):
    table = tmp_path / "a.csv"
    table.write_bytes(
        b'note,text\n0,good\n1,bad,film\n2\n3,\n4,  \n5,&nbsp;\n6,"bad\nfilm"\n7,b\xffd\n8,film\n'
    )
    told = ask(table)
    assert told == [
        f"wrote 3 rows to {tmp_path / 'a.predicted.csv'}",
        f"without 6 that stand in {tmp_path / 'a.predicted.csv.quarantine.csv'}: 3 no_text, 1 extra_columns, "
        "1 missing_columns, 1 undecodable (lines 3, 4, 5, 6, 7, …)",
    ]
    assert [row["note"] for row in rows_of(tmp_path / "a.predicted.csv")] == ["0", "6", "8"]
    aside = rows_of(tmp_path / "a.predicted.csv.quarantine.csv")
    assert [(row["line"], row["reason"]) for row in aside] == [
        ("3", "extra_columns"), ("4", "missing_columns"), ("5", "no_text"), ("6", "no_text"), ("7", "no_text"),
        ("10", "undecodable"),
    ]  # fmt: skip
    assert aside[0]["raw"] == "1,bad,film"
    assert aside[0]["detail"] == "3 fields under 2 column names"


def test_texts_that_are_missing_leave_a_gap_in_columns_too(ask, tmp_path):
    as_parquet(tmp_path / "a.parquet", [(0, None), (1, "good"), (2, " ")])
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n{"text": 3}\n{"note": 1}\nno json\n')
    ask(tmp_path / "a.parquet")
    ask(tmp_path / "b.jsonl")
    assert [row["note"] for row in rows_of(tmp_path / "a.predicted.parquet")] == [1]
    aside = rows_of(tmp_path / "a.predicted.parquet.quarantine.csv")
    assert [row["line"] for row in aside] == ["1", "3"]
    reasons = [row["reason"] for row in rows_of(tmp_path / "b.predicted.jsonl.quarantine.csv")]
    assert reasons == ["wrong_type", "no_text", "malformed"]


def test_a_table_that_is_whole_leaves_no_quarantine_of_a_former_one(ask, tmp_path):
    table = tmp_path / "a.csv"
    table.write_text('text\ngood\n""\n')
    ask(table)
    assert (tmp_path / "a.predicted.csv.quarantine.csv").exists()
    table.write_text("text\ngood\n")
    ask(table)
    assert not (tmp_path / "a.predicted.csv.quarantine.csv").exists()


def test_tables_of_one_name_and_two_formats_keep_each_its_quarantine(ask, tmp_path):
    (tmp_path / "a.csv").write_text('text\ngood\n""\n')
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    ask(tmp_path / "a.csv")
    ask(tmp_path / "a.jsonl")
    assert [row["line"] for row in rows_of(tmp_path / "a.predicted.csv.quarantine.csv")] == ["3"]


@pytest.mark.parametrize("rows", ["good", '""'])
@pytest.mark.parametrize(
    ("name", "output", "other", "told"),
    [
        ("b.csv.quarantine.csv", "b.csv", None, "its quarantine would replace b.csv.quarantine.csv itself"),
        ("b.csv", None, "b.predicted.csv.quarantine.csv", "is no quarantine of regraft: rename it"),
        ("b.csv", "c.csv", "c.csv.quarantine.csv", "is no quarantine of regraft: rename it"),
    ],
)
def test_a_file_of_somebody_else_is_never_replaced(ask, tmp_path, rows, name, output, other, told):
    contents = {name: f"text\n{rows}\n", **({other: "patient,room\n1,2\n"} if other else {})}
    for each, content in contents.items():
        (tmp_path / each).write_text(content)
    with pytest.raises(InputError, match=told):
        ask(tmp_path / name, None if output is None else tmp_path / output)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == contents


@pytest.mark.parametrize("name", ["b.quarantine.csv", "cells.quarantine.csv"])
def test_a_table_may_be_called_quarantine(ask, tmp_path, name):
    (tmp_path / name).write_text("text\ngood\n")
    (tmp_path / "cells.csv").write_text("text\ngood\n")
    ask(tmp_path / name, tmp_path / "b.csv")
    ask(tmp_path / "cells.csv")
    assert (tmp_path / name).read_text() == "text\ngood\n"


def test_many_chunks_are_one_copy(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "ROWS", 7)
    texts = [f"{'good ' * (number % 5)}film {number}" for number in range(40)]
    as_csv(tmp_path / "a.csv", [(n, t if n % 13 else "") for n, t in enumerate(texts)], ",")
    assert ask(tmp_path / "a.csv", tmp_path / "out.csv")[0] == f"wrote 36 rows to {tmp_path / 'out.csv'}"
    found = rows_of(tmp_path / "out.csv")
    assert [int(row["note"]) for row in found] == [n for n in range(40) if n % 13]
    assert len(rows_of(tmp_path / "out.csv.quarantine.csv")) == 4
    assert f"{found[4]['prediction']} ({float(found[4]['probability']):.3f})" == ask(texts[5])[0]


def test_an_interruption_leaves_nothing_half_written(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "ROWS", 2)
    as_csv(tmp_path / "a.csv", [(n, "good") for n in range(9)], ",")
    (tmp_path / "a.predicted.csv").write_text("the former one")
    asked = []

    def interrupted(self, texts):
        asked.append(texts)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return original(self, texts)

    original = consume.Champion.answers
    monkeypatch.setattr(consume.Champion, "answers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path / "a.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.predicted.csv"]
    assert (tmp_path / "a.predicted.csv").read_text() == "the former one"


def test_a_table_without_rows_is_copied_with_its_header_alone(ask, tmp_path):
    (tmp_path / "a.csv").write_text("text\n")
    assert ask(tmp_path / "a.csv")[0].startswith("wrote 0 rows")
    assert (tmp_path / "a.predicted.csv").read_text().split() == ["text,prediction,probability"]


def test_a_champion_that_has_learned_to_be_silent_is(ask, single, tmp_path):
    as_csv(tmp_path / "a.csv", list(enumerate(TEXTS)), ",")
    ask(tmp_path / "a.csv", model="careful")
    found = rows_of(tmp_path / "a.predicted.csv")
    assert {(row["prediction"], row["abstained"]) for row in found} == {("", "true")}
    cooled = [float(row["probability"]) for row in found]
    plain = [float(line.partition("(")[2][:-1]) for line in single]
    assert all(0.5 <= soft < sure for soft, sure in zip(cooled, plain, strict=True))
    assert ask(TEXTS[0], model="careful")[0].startswith("no answer (the likeliest is ")


@pytest.mark.parametrize(
    ("name", "content", "output", "told"),
    [
        ("a.csv", "review\ngood\n", None, "has no column 'text'; known: review"),
        ("a.csv", "text,prediction\ngood,1\n", None, "has a column 'prediction' already: rename it"),
        ("a.csv", "text,text\ngood,1\n", None, "2 columns called 'text'"),
        ("a.csv", "text\ngood\n", "a.csv", "is the table itself"),
        ("a.csv", "text\ngood\n", "out.parquet", "of a.csv a copy as .csv is written"),
        ("a.csv", "", None, "is empty"),
        ("a.json", '[{"text": "good"}]', None, "is one JSON array"),
        ("a.parquet", "text", None, "is no whole Parquet file"),
        ("none.csv", None, None, "no such file"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_asked_about_is_refused_whole(ask, tmp_path, name, content, output, told):
    if content is not None:
        (tmp_path / name).write_text(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=told):
        ask(tmp_path / name, None if output is None else tmp_path / output)
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_late_object_says_of_itself_is_not_replaced(ask, tmp_path):
    table = tmp_path / "a.jsonl"
    table.write_text('{"text": "good"}\n' * 1000 + '{"text": "bad", "prediction": "mine"}\n')
    with pytest.raises(InputError, match="an object has 'prediction' already: rename it"):
        ask(table)
    assert list(tmp_path.iterdir()) == [table]


def test_a_decision_that_fits_other_labels_is_refused(ask):
    with pytest.raises(
        InputError, match=r"the tag regraft.decision of version 1 .* 1 thresholds for 2 labels"
    ):
        ask("good", model="confused")
