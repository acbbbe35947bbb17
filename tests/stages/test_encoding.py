from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from tasks import params
from tasks.artifacts import EncodedDataset, PreparedText
from tasks.errors import ArtifactError, ParamsError
from tasks.stages import encoding, preparation, sources, vocabulary

REPOSITORY = Path(__file__).parents[2]
WORDS = tuple(f"w{n}" for n in range(40))


class Recorder:
    def __init__(self):
        self.values = {}

    def metrics(self, values, *, step=0):
        self.values |= values

    def file(self, path, folder=""):
        pass


@pytest.fixture
def chosen(tmp_path, tiny_checkpoint):
    tiny_checkpoint(WORDS)
    rows = [f"w{n} w{(n * 7) % 40} w{(n * 11) % 40} w{n % 3} other,{'ab'[n % 2]}" for n in range(40)]
    rows += [f"w{n} " * 14 + f",{'ab'[n % 2]}" for n in range(40)]
    (tmp_path / "data.csv").write_text("\n".join(["text,label", *rows]))
    mine = [
        "sources.text.path=data.csv", "sources.text.label=label", "sources.checkpoint.path=checkpoint",
        "encoding.max_length=10",
    ]  # fmt: skip
    settings = params.override(params.load(REPOSITORY / "params.yaml"), mine)
    for stage in (sources, preparation, vocabulary):
        stage.run(settings, tmp_path, Recorder())
    return settings


def test_each_prepared_row_is_encoded_once_in_its_split(chosen, tmp_path):
    recorder = Recorder()
    record = encoding.run(chosen, tmp_path, recorder)
    prepared = PreparedText.load(tmp_path)
    rows = parquet.read_table(prepared.path / "rows.parquet").to_pylist()
    for split in ("train", "validation", "test"):
        found = parquet.read_table(record.path / f"{split}.parquet").to_pylist()
        expected = {row["id"]: prepared.labels.index(row["label"]) for row in rows if row["split"] == split}
        assert {row["id"]: row["label"] for row in found} == expected
        lengths = [len(row["input_ids"]) for row in found]
        assert max(lengths) == 10
        assert (record.rows[split], record.tokens[split]) == (len(found), sum(lengths))
        assert record.truncated[split] == sum(length == 10 for length in lengths)
        assert recorder.values[f"tokens_lost.{split}"] == 6 * record.truncated[split]
        assert recorder.values[f"unknown_share.{split}"] == pytest.approx(
            (len(found) - record.truncated[split]) / sum(lengths)
        )


def test_its_bytes_repeat(chosen, tmp_path):
    assert (
        encoding.run(chosen, tmp_path, Recorder()).digest == encoding.run(chosen, tmp_path, Recorder()).digest
    )


def test_a_length_beyond_the_model_is_refused_and_nothing_is_written(chosen, tmp_path):
    with pytest.raises(ParamsError, match="13 is more than the 12 tokens"):
        encoding.run(params.override(chosen, ["encoding.max_length=13"]), tmp_path, Recorder())
    assert not EncodedDataset.folder(tmp_path).exists()


def test_it_names_the_stage_that_has_not_run(chosen, tmp_path):
    (tmp_path / "data" / "vocabulary" / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="dvc repro vocabulary"):
        encoding.run(chosen, tmp_path, Recorder())
