import logging

import pyarrow.parquet as parquet
import pytest

from tasks import params
from tasks.artifacts import SPLITS, EncodedDataset
from tasks.errors import ArtifactError, DataError, ParamsError
from tasks.stages import encoding, sources, vocabulary

WORDS = tuple(f"w{n}" for n in range(40))
PARAMS = """
sources:
  text: {path: data.csv}
  checkpoint: {path: checkpoint}
preparation: {}
vocabulary: {}
conversion: {}
encoding: {max_length: 10}
finetuning: {phases: [{name: head, depth: 0, learning_rate: 1.0e-3}]}
evaluation: {}
promotion: {model: tiny}
"""
ROWS = [  # short ones have an unknown word each, every fourth is too long
    {
        "id": f"r{n}",
        "text": "w1 " * 14 if n % 4 == 0 else f"w{n % 40} other",
        "label": "ab"[n % 2],
        "split": SPLITS[(n // 4) % 3],
    }
    for n in range(120)
]


class Recorder:
    def __init__(self):
        self.values, self.files = {}, []

    def metrics(self, values, *, step=0):
        self.values |= values

    def file(self, path, folder=""):
        self.files.append(path)


@pytest.fixture
def chosen(prepared, tmp_path, tiny_checkpoint):
    tiny_checkpoint(WORDS)
    (tmp_path / "data.csv").write_text("text,label\none,a\n")
    settings = params.parse(PARAMS)
    for stage in (sources, vocabulary):
        stage.run(settings, tmp_path, Recorder())
    prepared(tmp_path, ROWS)
    return settings


def test_each_prepared_row_is_encoded_once_in_its_split(chosen, tmp_path):
    recorder = Recorder()
    record = encoding.run(chosen, tmp_path, recorder)
    for split in SPLITS:
        found = parquet.read_table(record.path / f"{split}.parquet")
        assert found.column_names == ["id", "input_ids", "label"]
        expected = [(row["id"], "ab".index(row["label"])) for row in ROWS if row["split"] == split]
        assert [(row["id"], row["label"]) for row in found.to_pylist()] == expected
        lengths = [len(row) for row in found["input_ids"].to_pylist()]
        assert (record.rows[split], record.tokens[split]) == (40, sum(lengths)) == (40, 30 * 4 + 10 * 10)
        assert (record.truncated[split], record.lost[split], record.unknown[split]) == (10, 60, 30)
        assert recorder.values[f"lost.{split}"] == 60
        assert recorder.values[f"unknown_share.{split}"] == pytest.approx(30 / 220)
    assert (record.kind, record.labels) == ("label", ("a", "b"))


def test_its_bytes_repeat_whatever_the_shards_of_preparation(prepared, chosen, tmp_path):
    page = tmp_path / "reports" / "encoding.html"
    first, shown = encoding.run(chosen, tmp_path, Recorder()), page.read_bytes()
    prepared(tmp_path, ROWS, group=50)
    assert (encoding.run(chosen, tmp_path, Recorder()).digest, page.read_bytes()) == (first.digest, shown)


def test_the_page_tells_what_was_lost_and_needs_nothing_else(chosen, tmp_path):
    recorder = Recorder()
    encoding.run(chosen, tmp_path, recorder)
    (path,) = recorder.files
    page = path.read_text()
    assert (
        "30 rows (25.00 %) were longer than 10 tokens and lost 180; a maximum of 16 would hold 99 %" in page
    )
    assert "120 rows became 660 tokens" in page
    assert ("<script" in page, "http" in page, str(tmp_path) in page) == (False, False, False)


@pytest.mark.parametrize(("long", "told"), [(10, 0), (20, 1)])
def test_much_truncation_is_told(prepared, chosen, tmp_path, caplog, long, told):
    rows = [row | {"text": "w1 " * 14 if n < long else "w1"} for n, row in enumerate(ROWS)]
    prepared(tmp_path, rows)
    with caplog.at_level(logging.WARNING):
        encoding.run(chosen, tmp_path, Recorder())
    messages = [record.getMessage() for record in caplog.records if record.name == "tasks.stages.encoding"]
    assert len(messages) == told
    assert all(
        "17 % of the rows are longer than encoding.max_length = 10 and lost 120 tokens; 16 would fit 99 %"
        in m
        for m in messages
    )


@pytest.mark.parametrize("strategy", ["wrapped", "bfd_split"])
def test_packed_rows_hold_every_token(prepared, chosen, tmp_path, strategy):
    pytest.importorskip("trl")
    prepared(
        tmp_path, [{key: row[key] for key in ("id", "text", "split")} for row in ROWS], kind="text", labels=()
    )
    record = encoding.run(params.override(chosen, [f"encoding.packing={strategy}"]), tmp_path, Recorder())
    for split in SPLITS:
        found = parquet.read_table(record.path / f"{split}.parquet")
        lengths = [len(row) for row in found["input_ids"].to_pylist()]
        assert (sum(lengths), max(lengths), record.lost[split]) == (30 * 4 + 10 * 16, 10, 0)
        assert record.rows[split] == len(found) < 40
        assert ("seq_lengths" in found.column_names) == (strategy == "bfd_split")
    assert f"packed by {strategy} into" in (tmp_path / "reports" / "encoding.html").read_text()


def test_tags_stand_with_the_words_that_are_left(prepared, chosen, tmp_path, caplog):
    words = ["w1", " ", *["w2"] * 12]
    row = {"text": " ".join(words), "tokens": words, "tags": ["B-X", "O", *["I-X"] * 12]}
    prepared(
        tmp_path,
        [{"id": f"r{n}", **row, "split": split} for n, split in enumerate(SPLITS)],
        kind="tags",
        labels=("B-X", "I-X", "O"),
    )
    with caplog.at_level(logging.WARNING):
        record = encoding.run(chosen, tmp_path, Recorder())
    (found,) = parquet.read_table(record.path / "test.parquet").to_pylist()
    assert found["places"] == list(range(1, 9))
    assert found["tags"] == [0] + [1] * 7
    assert (record.labels, record.lost["test"]) == (("B-X", "I-X", "O"), 5)
    assert "3 words give no token, and their tags are neither learnt nor predicted" in caplog.text
    assert "3 words give no token" in (tmp_path / "reports" / "encoding.html").read_text()


def test_a_long_context_becomes_windows_whose_bytes_repeat(prepared, chosen, tmp_path, caplog):
    context = " ".join(WORDS[:30])
    spans = [{"text": ["w20 w21"], "answer_start": [context.index("w20")]}, {"text": [], "answer_start": []},
             {"text": [context], "answer_start": [0]}]  # fmt: skip
    prepared(
        tmp_path,
        [
            {"id": f"r{n}", "text": context, "question": "w1", "answers": span, "split": split}
            for n, (split, span) in enumerate(zip(SPLITS, spans, strict=True))
        ],
        kind="answer",
        labels=(),
    )
    settings = params.override(chosen, ["encoding.stride=4"])
    record = encoding.run(settings, tmp_path, Recorder())
    assert dict(record.rows) == {"train": 6, "validation": 6, "test": 6}
    assert (dict(record.lost), dict(record.truncated)) == (dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0))
    found = parquet.read_table(record.path / "train.parquet")
    assert found.column_names == ["id", "input_ids", "start", "end", "offsets"]
    held = [row for row in found.to_pylist() if row["end"]]
    assert held
    for row in held:
        assert context[row["offsets"][2 * row["start"]] : row["offsets"][2 * row["end"] + 1]] == "w20 w21"
    page = (tmp_path / "reports" / "encoding.html").read_text()
    assert "3 rows became 168 tokens, in 18 windows" in page
    assert "1 answers fit no window whole" in page
    assert encoding.run(settings, tmp_path, Recorder()).digest == record.digest


def test_a_split_without_rows_is_an_empty_file(prepared, chosen, tmp_path):
    prepared(tmp_path, [row for row in ROWS if row["split"] == "train"])
    record = encoding.run(chosen, tmp_path, Recorder())
    assert record.rows["test"] == parquet.read_table(record.path / "test.parquet").num_rows == 0


@pytest.mark.parametrize(
    ("assignment", "error", "message"),
    [
        ("encoding.max_length=13", ParamsError, "13 is more than the 12 tokens"),
        ("encoding.packing=wrapped", ParamsError, "these are of kind label"),
        ("encoding.stride=4", ParamsError, "encoding.stride = 4 is for rows of kind answer"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_written(chosen, tmp_path, assignment, error, message):
    with pytest.raises(error, match=message):
        encoding.run(params.override(chosen, [assignment]), tmp_path, Recorder())
    assert not EncodedDataset.folder(tmp_path).exists()


def test_a_kind_that_cannot_be_encoded_is_refused(prepared, chosen, tmp_path):
    row = {"id": "a", "text": "w1", "chosen": "w2", "rejected": "w3", "split": "train"}
    prepared(tmp_path, [row], kind="preference", labels=())
    with pytest.raises(DataError, match="rows of kind preference cannot be encoded yet"):
        encoding.run(chosen, tmp_path, Recorder())


def test_it_names_the_stage_that_has_not_run(chosen, tmp_path):
    (tmp_path / "data" / "vocabulary" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="dvc repro vocabulary"):
        encoding.run(chosen, tmp_path, Recorder())
