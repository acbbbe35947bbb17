import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from tasks.errors import SourceError
from tasks.text.reading import infer

ROWS = [
    {"id": n, "kind": "spam" if n % 3 else "ham", "message": f"message number {n} here"} for n in range(30)
]


def write(folder, name):
    path = folder / name
    text = "id,kind,message\n" + "".join(f"{r['id']},{r['kind']},{r['message']}\n" for r in ROWS)
    if name.endswith(".parquet"):
        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({**row, "more": ["x"]}) + "\n" for row in ROWS))
    elif name.endswith(".tsv"):
        path.write_text(text.replace(",", "\t"))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.parquet"])
def test_the_longest_is_the_text_and_what_repeats_the_label(tmp_path, name):
    guess = infer.columns(write(tmp_path, name))
    assert (guess.columns, guess.encoding) == ({"text": "message", "label": "kind"}, "utf-8")
    assert guess.reasons["label"] == "2 different values in 30 rows"
    assert guess.reasons["text"].endswith("characters on average")


def test_a_named_column_is_taken_and_the_other_guessed(tmp_path):
    guess = infer.columns(write(tmp_path, "a.csv"), label="message")
    assert guess.columns == {"text": "kind", "label": "message"}


def test_a_folder_of_labels_needs_no_guess(tmp_path):
    for label in ("bad", "good"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "1.txt").write_text(f"this is {label} text")
    guess = infer.columns(tmp_path)
    assert guess.columns == {"text": "text", "label": "label"}


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "is empty"),
        ("text,label\n", {}, "at least two columns .* and one row"),
        ("text\none\n", {}, "at least two columns"),
        ("text,label\none,a\n", {"label": "lable"}, r"has no column 'lable'; did you mean 'label'\?"),
    ],
)
def test_what_cannot_be_guessed_from(tmp_path, content, options, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(SourceError, match=message):
        infer.columns(tmp_path / "a.csv", **options)


def test_a_column_of_lists_is_no_text(tmp_path):
    path = write(tmp_path, "a.jsonl")
    with pytest.raises(SourceError, match="column 'more' holds lists or objects"):
        infer.columns(path, text="more")
    with pytest.raises(SourceError, match="no such file"):
        infer.columns(tmp_path / "b.jsonl")


@pytest.mark.parametrize(
    ("name", "model"),
    [("My Reviews.csv", "my-reviews"), ("a.b.jsonl.gz", "a.b"), ("folder", "folder"), ("!!.csv", "model")],
)
def test_a_model_is_named_after_its_table(name, model):
    assert infer.model_name(Path(name)) == model
