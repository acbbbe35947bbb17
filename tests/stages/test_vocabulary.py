import pyarrow.parquet as parquet
import pytest

from tasks import params
from tasks.artifacts import SPLITS
from tasks.errors import ArtifactError, ParamsError
from tasks.stages import sources, vocabulary

PARAMS = """
sources:
  text: {path: data.csv}
  checkpoint: {path: checkpoint}
preparation: {}
vocabulary: {}
conversion: {}
encoding: {}
finetuning: {phases: [{name: head, depth: 0, learning_rate: 1.0e-3}]}
evaluation: {}
promotion: {model: tiny}
"""


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
    settings = params.override(params.parse(PARAMS), mine)
    sources.run(settings, tmp_path, Recorder())
    return settings


def test_the_tokenizer_is_kept_whole_and_aligned(chosen, tmp_path):
    recorder = Recorder()
    record = vocabulary.run(chosen, tmp_path, recorder)
    assert (record.size, record.kept, record.fresh) == (8, 8, 0)
    assert dict(record.special) == {"cls": 2, "mask": 4, "pad": 0, "sep": 3, "unk": 1}
    rows = parquet.read_table(record.path / "alignment.parquet").to_pylist()
    assert rows[5] == {"id": 5, "token": "one", "origin": "kept", "source_id": 5, "pieces": []}
    assert recorder.values["size"] == 8


def test_an_added_token_brings_the_pieces_that_the_checkpoint_knows(chosen, tmp_path):
    settings = params.override(chosen, ["vocabulary.add_tokens=['one two', '<|user|>']"])
    record = vocabulary.run(settings, tmp_path, Recorder())
    rows = parquet.read_table(record.path / "alignment.parquet").to_pylist()
    assert [(row["id"], row["source_id"], row["pieces"]) for row in rows[8:]] == [
        (8, None, [5, 6]),
        (9, None, []),
    ]


def test_its_bytes_repeat_and_hold_no_path_of_this_machine(chosen, tmp_path):
    record = vocabulary.run(chosen, tmp_path, Recorder())
    files = [path for path in record.path.rglob("*") if path.is_file()]
    assert not [path.name for path in files if str(tmp_path).encode() in path.read_bytes()]
    assert vocabulary.run(chosen, tmp_path, Recorder()).digest == record.digest


def test_a_checkpoint_that_changed_after_sources_is_refused(chosen, tmp_path):
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json changed since the sources stage looked"):
        vocabulary.run(chosen, tmp_path, Recorder())


def train(settings, root, *assignments):
    return vocabulary.run(params.override(settings, ["vocabulary.size=300", *assignments]), root, Recorder())


def test_a_new_one_is_trained_on_the_train_split_alone(prepared, chosen, tmp_path):
    rows = [
        {"id": str(n), "text": f"one one{n % 3} two", "label": "a", "split": SPLITS[n % 3]} for n in range(30)
    ]
    rows += [{"id": "t", "text": "q one one " * 20, "label": "a", "split": "test"}]
    prepared(tmp_path, rows)
    record = train(chosen, tmp_path, "vocabulary.tokenizer=wordpiece", "vocabulary.add_tokens=['<|user|>']")
    found = {row["token"]: row for row in parquet.read_table(record.path / "alignment.parquet").to_pylist()}
    assert (found["one"]["origin"], found["one"]["source_id"]) == ("matched", 5)
    assert (found["<|user|>"]["origin"], found["<|user|>"]["id"]) == ("added", len(found) - 1)
    assert "q" not in found
    assert (record.kept, record.fresh) == (7, len(found) - 7)
    assert set(record.special) == {"cls", "mask", "pad", "sep", "unk"}
    again = train(chosen, tmp_path, "vocabulary.tokenizer=wordpiece", "vocabulary.add_tokens=['<|user|>']")
    assert again.digest == record.digest


def test_a_new_one_needs_the_prepared_text(chosen, tmp_path):
    with pytest.raises(ArtifactError, match="dvc repro preparation"):
        train(chosen, tmp_path, "vocabulary.tokenizer=bpe")


def test_a_token_that_is_there_is_refused_and_nothing_is_written(chosen, tmp_path):
    with pytest.raises(ParamsError, match="names 'two', which is already token 6"):
        train(chosen, tmp_path, "vocabulary.add_tokens=[two]")
    assert not (tmp_path / "data" / "vocabulary").exists()
