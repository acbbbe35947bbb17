"""The DVC way, command by command, on a small real project."""

import csv
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml

from tasks.artifacts import Evaluation, Promotion, TrainedModel

pytestmark = pytest.mark.e2e


def _outs(root: Path) -> dict[str, str]:
    """Digest of every cached output in dvc.lock."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", ())}


def test_dvc_commands(reproduced, command):
    """One project, as a person would use it over a day; each step needs the one before."""
    evaluation = Evaluation.load(reproduced)
    assert evaluation.metrics["model"]["accuracy"]["value"] > 0.9, (
        "the label follows from one word: learnable"
    )
    assert set(evaluation.metrics) == {"majority", "tfidf", "frozen", "zero_shot", "head", "model"}
    _unchanged_the_second_time(reproduced, command)
    _diffs(reproduced, command)
    _plots(reproduced, command)
    _remote(reproduced, command)
    _experiment(reproduced, command)
    _new_rows(reproduced, command)


def _unchanged_the_second_time(root, command):
    before = _outs(root)
    said = command("dvc", "repro").stdout
    for stage in ("preparation", "vocabulary", "conversion", "encoding", "finetuning", "evaluation"):
        assert f"Stage '{stage}' didn't change, skipping" in said
    assert _outs(root) == before
    assert command("git", "status", "--porcelain").stdout == ""


def _diffs(root, command):
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("seed: 1\n  device", "seed: 3\n  device"))
    changed = json.loads(command("dvc", "params", "diff", "--json").stdout)
    assert changed["params.yaml"]["finetuning.seed"] == {"old": 1, "new": 3, "diff": 2}
    metrics = json.loads((root / "reports" / "metrics.json").read_text())
    command("dvc", "metrics", "show")
    metrics["model"]["accuracy"] = 0.5
    (root / "reports" / "metrics.json").write_text(json.dumps(metrics))
    changed = json.loads(command("dvc", "metrics", "diff", "--json").stdout)
    assert changed["reports/metrics.json"]["model.accuracy"]["new"] == 0.5
    command("git", "checkout", "params.yaml")
    command("dvc", "repro", "-f", "-s", "evaluation")


def _plots(root, command):
    command("dvc", "plots", "show", "-o", "plots")
    page = (root / "plots" / "index.html").read_text()
    for table in ("finetuning_steps", "evaluation_classes", "evaluation_confusion", "evaluation_reliability"):
        assert f"data_{table}_csv" in page
    shutil.rmtree(root / "plots")


def _remote(root, command):
    """What was pushed comes back into an empty cache, by a lock file alone."""
    store = root.parent / "a store"
    command("dvc", "remote", "add", "--default", "--local", "store", str(store))
    command("dvc", "push")
    weights = TrainedModel.load(root).weights
    shutil.rmtree(root / ".dvc" / "cache")
    shutil.rmtree(root / "data" / "finetuning")
    command("dvc", "pull", "finetuning")
    assert TrainedModel.load(root).weights == weights
    command("dvc", "pull", "--allow-missing")


def _experiment(root, command):
    champion = Promotion.load(root)
    command("dvc", "exp", "run", "-S", "finetuning.seed=2", "--name", "other-seed", "--temp")
    with _experiments(command, root).open(encoding="utf-8") as stream:
        rows = {row["Experiment"]: row for row in csv.DictReader(stream)}
    assert rows["other-seed"]["finetuning.seed"] == "2"
    assert Promotion.load(root) == champion
    compared = command("regraft", "compare").stdout
    assert "seed 2" in compared, "an experiment is tracked beside the other runs"
    assert _champions(root) == [champion.version], "and it moves no alias"


def _champions(root):
    with sqlite3.connect(root / ".regraft" / "mlflow.db") as database:
        return [
            str(version) for (version,) in database.execute("select version from registered_model_aliases")
        ]


def _experiments(command, root):
    target = root.parent / "experiments.csv"
    target.write_text(command("dvc", "exp", "show", "--csv").stdout)
    return target


def _new_rows(root, command):
    """A changed table is noticed, old rows stay in their split, and the base model is not converted again."""
    import pandas

    columns = ["text", "split"]
    before = pandas.read_parquet(root / "data" / "preparation" / "rows.parquet").set_index("text")["split"]
    with (root / "reviews.csv").open("a") as stream:
        stream.writelines(
            f"the superb garden of number {n} and its rather odd neighbour,good\n" for n in range(5)
        )
    said = command("dvc", "repro", "encoding").stdout
    assert "Running stage 'preparation'" in said
    after = pandas.read_parquet(root / "data" / "preparation" / "rows.parquet", columns=columns)
    both = after.set_index("text")["split"].to_frame("after").join(before, how="inner")
    assert (both["after"] == both["split"]).all()
    assert "Stage 'conversion' didn't change" in command("dvc", "repro", "conversion").stdout
