import json
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import environment, files, params
from tasks.artifacts import Sources
from tasks.errors import CheckpointError, ParamsError, SourceError
from tasks.stages import sources

REPOSITORY = Path(__file__).parents[2]


class Silent:
    def metrics(self, values, *, step=0):
        raise AssertionError("sources tells tracking nothing")

    file = metrics


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data.csv").write_text("text,label\none,a\n")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    return tmp_path


def run(root, *changes):
    mine = ["sources.text.path=data.csv", "sources.checkpoint.path=checkpoint", *changes]
    settings = params.override(params.load(REPOSITORY / "params.yaml"), mine)
    return sources.run(settings, root, Silent())


def test_both_sources_are_noted_by_content_and_nothing_else(root):
    record = run(root)
    text = json.loads((record.path / "text.json").read_text())
    assert text["reference"] == "data.csv"
    assert [(file["name"], file["bytes"]) for file in text["files"]] == [("data.csv", 17)]
    assert record.text == files.digest_json(text["files"])
    assert str(root) not in "".join(path.read_text() for path in record.path.iterdir())


def test_only_what_changed_gets_another_digest(root):
    before = run(root)
    assert run(root).digest == before.digest
    (root / "checkpoint" / "config.json").write_text("{ }")
    after = run(root)
    assert (after.text == before.text, after.checkpoint == before.checkpoint) == (True, False)


def test_a_directory_is_listed_file_by_file(root):
    (root / "texts" / "good").mkdir(parents=True)
    (root / "texts" / "good" / "1.txt").write_text("one")
    before = run(root, "sources.text.path=texts")
    listing = json.loads((before.path / "text.json").read_text())
    assert [file["name"] for file in listing["files"]] == ["good/1.txt"]
    (root / "texts" / "good" / "1.txt").rename(root / "texts" / "good" / "2.txt")
    assert run(root, "sources.text.path=texts").text != before.text


def test_evaluations_are_listed_beside_the_text(root):
    (root / "other.jsonl").write_text('{"text": "two"}\n')
    before = run(root)
    record = run(root, "sources.evaluations=[{path: other.jsonl}]")
    [listed] = json.loads((record.path / "text.json").read_text())["evaluations"]
    assert (listed["reference"], [file["name"] for file in listed["files"]]) == (
        "other.jsonl",
        ["other.jsonl"],
    )
    assert (record.text == before.text, record.digest == before.digest) == (True, False)
    with pytest.raises(SourceError, match=r"no such path: othr\.jsonl; did you mean 'other\.jsonl'"):
        run(root, "sources.evaluations=[{path: othr.jsonl}]")


def test_a_missing_source_leaves_the_former_listing(root):
    before = run(root)
    with pytest.raises(SourceError, match=r"no such path: dat.csv; did you mean 'data.csv'"):
        run(root, "sources.text.path=dat.csv")
    with pytest.raises(CheckpointError, match=r"no such path: ./chekpoint; did you mean 'checkpoint'"):
        run(root, "sources.checkpoint.path=./chekpoint")
    assert Sources.load(root) == before


def test_it_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'pandas', 'numpy', 'pyarrow', 'mlflow', 'huggingface_hub'}"
    code = f"import sys, tasks.stages.sources; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_baseline_whose_library_is_missing_is_refused_before_anything_long(root, monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None)  # whatever is installed here
    with pytest.raises(
        ParamsError, match=r"k_shot needs lm_eval, which is not .*: pip install 'regraft\[prompting\]'"
    ):
        run(root, "evaluation.baselines=[majority, k_shot]")
    assert run(root, "evaluation.baselines=[majority]").digest
