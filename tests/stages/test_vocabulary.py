from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from tasks import params
from tasks.errors import ArtifactError
from tasks.stages import sources, vocabulary

REPOSITORY = Path(__file__).parents[2]


class Recorder:
    def __init__(self):
        self.values = {}

    def metrics(self, values, *, step=0):
        self.values |= values

    def file(self, path, folder=""):
        raise AssertionError(f"nothing to show: {path}")


@pytest.fixture
def chosen(tmp_path, tiny_checkpoint):
    tiny_checkpoint()
    (tmp_path / "data.csv").write_text("text,label\none,a\n")
    mine = ["sources.text.path=data.csv", "sources.checkpoint.path=checkpoint"]
    settings = params.override(params.load(REPOSITORY / "params.yaml"), mine)
    sources.run(settings, tmp_path, Recorder())
    return settings


def test_the_tokenizer_is_kept_whole_and_aligned(chosen, tmp_path):
    recorder = Recorder()
    record = vocabulary.run(chosen, tmp_path, recorder)
    assert (record.size, record.kept, record.fresh) == (8, 8, 0)
    assert dict(record.special) == {"cls": 2, "mask": 4, "pad": 0, "sep": 3, "unk": 1}
    rows = parquet.read_table(record.path / "alignment.parquet").to_pylist()
    assert rows[5] == {"id": 5, "token": "one", "origin": "kept", "source_id": 5}
    assert recorder.values["size"] == 8


def test_its_bytes_repeat_and_hold_no_path_of_this_machine(chosen, tmp_path):
    record = vocabulary.run(chosen, tmp_path, Recorder())
    files = [path for path in record.path.rglob("*") if path.is_file()]
    assert not [path.name for path in files if str(tmp_path).encode() in path.read_bytes()]
    assert vocabulary.run(chosen, tmp_path, Recorder()).digest == record.digest


def test_a_checkpoint_that_changed_after_sources_is_refused(chosen, tmp_path):
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json changed since the sources stage looked"):
        vocabulary.run(chosen, tmp_path, Recorder())
