import json
import multiprocessing
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import polars as pl
import pytest
from mlflow import MlflowClient

from tasks import files, params
from tasks.artifacts import (
    ConvertedCheckpoint,
    EncodedDataset,
    Evaluation,
    PreparedText,
    Sources,
    TrainedModel,
)
from tasks.errors import ArtifactError, HeldError, InputError, ParamsError, TrackingError
from tasks.evaluation import predictions, slices
from tasks.evaluation.gate.checks import Check
from tasks.evaluation.predictions import Predictions
from tasks.stages import champion, promotion
from tasks.stages.ruling import TAG, Ruling
from tasks.tracking import flavor, runs, server
from tasks.tracking.registry import Registry, Version

SHIPPED = params.load(Path(__file__).parents[2] / "params.yaml")
ROWS = 100
LABELS = ("bad", "good")
WORSE, FAIR, BETTER, BEST = 55, 70, 85, 98  # rows of 100 that a model has right


def changed(*assignments):
    return params.override(
        SHIPPED, ["promotion.model=reviews", "promotion.gate.must_beat=[majority]", *assignments]
    )


PARAMS = changed()


class Ledger:
    """A Track that keeps what it is told."""

    def __init__(self):
        self.figures, self.files = {}, []

    def metrics(self, values, *, step=0):
        self.figures |= values

    def file(self, path, folder=""):
        self.files.append(path.name)


def answers(name, right, ids, labels):
    """The first `right` rows answered rightly, so that a better model is right wherever another is."""
    chosen = np.where(np.arange(len(ids)) < right, labels, 1 - labels)
    probabilities = np.where(np.arange(2) == chosen[:, None], 0.75, 0.25).astype(np.float32)
    return Predictions(name, ids, labels, probabilities)


@pytest.fixture
def light(tracked, monkeypatch):
    """MLflow's flavor and the search for finetuning's run take a second and have their own tests."""

    def save(directory, target, about, *, max_length, kind, stride):
        shutil.copytree(directory, target / "model")
        shutil.copytree(directory, target / "components" / "tokenizer")
        about.save(str(target / "MLmodel"))

    def locate(stage, params, root):
        place = str(tracked / ".regraft" / "mlartifacts")
        client = MlflowClient(tracking_uri=server.uri(root))
        found = client.get_experiment_by_name("reviews")
        experiment = found.experiment_id if found else client.create_experiment("reviews", place)
        return client.create_run(experiment).info.run_id

    monkeypatch.setattr(flavor, "save", save)
    monkeypatch.setattr(runs, "locate", locate)


@pytest.fixture
def arrange(prepared, tiny_classifier, light):
    """Writes what finetuning and evaluation leave behind for a model that has `right` rows right."""

    def write(
        root,
        right,
        *,
        seed,
        salt="a",
        labels=LABELS,
        base=None,
        classes=2,
        together=1,
        spoil=None,
        calibration=None,
        decision=None,
    ):
        ids = tuple(f"{salt}{number:03}" for number in range(ROWS))
        truth = np.arange(ROWS, dtype=np.int64) % classes
        texts = ["good film" if number % 3 else "bad" for number in range(ROWS)]
        rows = [
            {"id": id, "text": text, "cluster": f"{place // together:016x}", "split": "test"}
            for place, (id, text) in enumerate(zip(ids, texts, strict=True))
        ]
        prepared(root, rows, labels=labels)
        _write_upstream(root, labels)
        with files.replace_directory(TrainedModel.folder(root)) as draft:
            model = tiny_classifier(draft / "model", seed=seed, labels=labels)
            weights = files.digest_file(model / "model.safetensors")
            base = convert(root, structure="all tensors") if base is None else base
            TrainedModel.save(draft, base=base, data="sha256:d", labels=labels, weights=weights, phases=())
        contestants = [answers("model", right, ids, truth), answers("majority", 40, ids, truth)]
        if spoil:
            contestants[0] = spoil(contestants[0])
        accuracy = {"accuracy": {"value": right / ROWS, "low": 0.0, "high": 1.0}}
        with files.replace_directory(Evaluation.folder(root)) as draft:
            (draft / "README.md").write_text("# a card")
            predictions.write(draft / "predictions.parquet", contestants)
            slices.write(draft / "slices.parquet", ids, {"first": np.arange(ROWS) < 50})
            Evaluation.save(
                draft,
                model=TrainedModel.load(root).digest,
                test=predictions.digest_rows(ids, truth),
                labels=labels,
                rows=ROWS,
                metrics={"model": accuracy},
                comparisons={},
                calibration=calibration or {},
                decision=decision or {},
                **{name: {} for name in ("slices", "decided")},
            )

    return write


def _write_upstream(root, labels):
    sizes = {"train": 0, "validation": 0, "test": ROWS}
    if not Sources.folder(root).exists():
        with files.replace_directory(Sources.folder(root)) as draft:
            Sources.save(draft, text="sha256:1", checkpoint="sha256:2")
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        EncodedDataset.save(
            draft,
            kind="label",
            labels=labels,
            max_length=16,
            rows=sizes,
            tokens=sizes,
            truncated=sizes,
            lost=sizes,
            unknown=sizes,
        )


@pytest.fixture
def root(tracked):
    return tracked


@pytest.fixture
def propose(root, arrange):
    """Arrange a model and run the stage on it."""

    def go(right, *, seed, params=PARAMS, **how):
        arrange(root, right, seed=seed, **how)
        return promotion.run(params, root, Ledger())

    return go


@pytest.fixture
def reviews(root):
    return Registry(root, "reviews")


def verdict(root):
    return json.loads((root / "data" / "promotion" / "verdict.json").read_text(encoding="utf-8"))


def test_the_first_model_that_beats_the_baselines_becomes_champion(root, propose, reviews):
    record = propose(FAIR, seed=1)
    assert (record.outcome, record.version, record.alias_moved) == ("promote", "1", True)
    assert "accuracy 0.700 > majority 0.400 on the same 100 rows" in record.reasons[0]
    champion = reviews.champion()
    assert champion.number == "1"
    assert champion.tags["regraft.outcome"] == "promote"
    assert champion.tags["regraft.test"] == Evaluation.load(root).test
    assert champion.tags["regraft.conversion"] == ConvertedCheckpoint.load(root).digest
    assert (reviews.download(champion) / "README.md").read_text() == "# a card"
    assert champion.tags["regraft.params"] == runs.parent_key(PARAMS, root)
    assert verdict(root)["champion_before"] is None


def test_each_models_page_shows_its_test_figures_once(root, propose, reviews):
    for right, seed in ((FAIR, 1), (BETTER, 2), (BETTER, 2)):
        propose(right, seed=seed)
    client = MlflowClient(tracking_uri=server.uri(root))
    experiment = client.get_experiment_by_name("reviews").experiment_id
    digest = Evaluation.load(root).test.removeprefix("sha256:")
    told = {
        model.tags["regraft.weights"]: {(one.key, one.value, one.dataset_digest) for one in model.metrics}
        for model in client.search_logged_models([experiment])
    }
    assert told == {
        version.weights: {("test.accuracy", right / ROWS, digest[:36])}
        for version, right in zip(map(reviews.version, "12"), (FAIR, BETTER), strict=True)
    }


def test_a_first_model_that_beats_no_baseline_does_not(propose, reviews):
    record = propose(42, seed=1)
    assert (record.outcome, record.alias_moved) == ("hold", False)
    assert "not significantly better" in record.reasons[0]
    assert reviews.champion() is None
    assert reviews.version("1").tags["regraft.outcome"] == "hold"


def test_a_baseline_that_was_not_evaluated_holds(propose, reviews):
    record = propose(BEST, seed=1, params=changed("promotion.gate.must_beat=[majority, frozen]"))
    assert record.outcome == "hold"
    assert record.reasons == ("baseline 'frozen' was not evaluated",)
    assert reviews.champion() is None


def test_rows_of_one_cluster_count_once(propose, reviews):
    record = propose(BEST, seed=1, together=20)
    assert record.outcome == "hold"
    assert any("100 test rows in 5 groups decide nothing" in line for line in record.reasons)
    record = propose(BEST, seed=2, together=2)
    assert (record.outcome, reviews.champion().number) == ("promote", "2")
    assert "on the same 100 rows in 50 groups, paired" in record.reasons[0]


def test_a_verdict_is_given_again_where_other_rows_are_near_duplicates(propose, reviews):
    propose(FAIR, seed=1)
    assert propose(BEST, seed=2, params=changed("promotion.move_alias=false")).outcome == "promote"
    record = propose(BEST, seed=2, together=20)
    assert (record.version, record.outcome, reviews.champion().number) == ("2", "hold", "1")


def test_the_same_weights_with_other_names_of_labels_are_another_version(propose, reviews):
    propose(FAIR, seed=1)
    (kept,) = reviews.versions()
    head = files.digest_file(reviews.download(kept) / "model.safetensors")
    record = propose(FAIR, seed=1, labels=("dislike", "like"))
    assert (record.version, record.alias_moved) == ("2", False)
    renamed = reviews.version("2")
    assert renamed.weights == head == kept.weights
    config = json.loads((reviews.download(renamed) / "config.json").read_text())
    assert set(config["id2label"].values()) == {"dislike", "like"}
    assert champion.Champion(reviews, reviews.champion()).labels == LABELS


def test_test_rows_that_preparation_has_lost_hold(root, arrange):
    arrange(root, BEST, seed=1)
    path = PreparedText.folder(root) / "rows.parquet"
    pl.read_parquet(path).head(99).write_parquet(path)
    record = promotion.run(PARAMS, root, Ledger())
    assert record.outcome == "hold"
    assert "has 99 of the 100 test rows: run `dvc repro`" in record.reasons[0]


@pytest.mark.parametrize(
    ("right", "outcome", "reason"),
    [
        (BEST, "promote", "accuracy 0.980 > champion 0.850"),
        (86, "hold", "accuracy 0.860 > champion 0.850"),
        (BETTER, "hold", "accuracy 0.850 = champion 0.850"),
        (WORSE, "reject", "accuracy 0.550 < champion 0.850"),
    ],
)
def test_a_second_model_is_paired_with_the_champion(root, propose, reviews, right, outcome, reason):
    propose(BETTER, seed=1)
    record = propose(right, seed=2)
    assert record.outcome == outcome
    assert any(reason in line for line in record.reasons)
    assert reviews.champion().number == ("2" if outcome == "promote" else "1")
    assert record.alias_moved == (outcome == "promote")
    assert reviews.version("2").tags["regraft.outcome"] == outcome
    assert verdict(root)["champion_before"] == "1"


def test_the_page_says_why_and_how_to_go_back(root, propose):
    propose(FAIR, seed=1)
    propose(BEST, seed=2)
    page = (root / "reports" / "promotion.md").read_text(encoding="utf-8")
    assert page.startswith("# promote: reviews version 2\n")
    assert "the champion: version 1. Champion now: version 2." in page
    assert "| champion | 0.980 | 0.700 | +0.280 | " in page
    assert "`regraft rollback`" in page


def test_tracking_hears_the_test_figures_and_the_gates(root, arrange):
    arrange(root, FAIR, seed=1)
    ledger = Ledger()
    promotion.run(PARAMS, root, ledger)
    assert ledger.figures["test.accuracy"] == 0.7
    assert ledger.figures["gate.majority.rows"] == ROWS
    assert ledger.files == ["promotion.md"]


def test_the_champion_is_not_judged_against_itself(root, propose, reviews):
    first = propose(FAIR, seed=1)
    assert (first.outcome, first.alias_moved) == ("promote", True)
    page = (root / "reports" / "promotion.md").read_bytes()
    assert propose(FAIR, seed=1) == first, "a second look changes no byte, so that DVC sees nothing new"
    assert (root / "reports" / "promotion.md").read_bytes() == page
    assert len(reviews.history()) == 1
    assert len(reviews.versions()) == 1


def test_what_was_judged_is_not_judged_again(root, propose, reviews, monkeypatch):
    propose(BETTER, seed=1)
    first = propose(86, seed=2)
    before = reviews.version("2")
    monkeypatch.setattr(promotion.verdict, "gate", None)
    monkeypatch.setattr(Registry, "promote", None)
    second = promotion.run(PARAMS, root, Ledger())
    assert second == first
    assert reviews.version("2") == before


def test_a_new_champion_or_another_alpha_is_a_new_question(root, propose, reviews):
    propose(FAIR, seed=1)
    assert propose(78, seed=2, params=changed("promotion.alpha=0.001")).outcome == "hold"
    assert propose(78, seed=2).outcome == "promote"
    assert propose(FAIR, seed=1).outcome == "reject"
    assert reviews.champion().number == "2"


def test_changed_test_rows_are_answered_by_the_champion_too(root, propose, reviews, tmp_path):
    propose(FAIR, seed=1)
    record = propose(BEST, seed=2, salt="b")
    told = next(line for line in record.reasons if "champion" in line)
    assert "on the same 100 rows" in told
    kept = reviews.predictions(reviews.version("1"), tmp_path, test=Evaluation.load(root).test)
    theirs = predictions.read(kept)["model"]
    assert theirs.ids[0] == "b000"
    assert f"champion {theirs.correct.mean():.3f}" in told
    asked = champion.current(PARAMS, root)
    found = asked.answers(["bad", "good film"])
    assert asked.labels == LABELS
    if not record.alias_moved:  # the champion still is version 1
        np.testing.assert_allclose(found[[0, 1]], theirs.answer[[0, 1]], atol=1e-6)


def test_a_champion_whose_labels_stand_in_another_order_is_read_in_ours(root, propose, reviews, tmp_path):
    propose(FAIR, seed=1)
    before = champion.current(PARAMS, root).answers(["bad"])
    propose(BEST, seed=2, salt="b", labels=("good", "bad"))
    kept = reviews.predictions(reviews.version("1"), tmp_path, test=Evaluation.load(root).test)
    np.testing.assert_allclose(predictions.read(kept)["model"].answer[0], before[0, ::-1], atol=1e-6)


def test_a_champion_with_other_labels_holds(propose, reviews):
    propose(FAIR, seed=1)
    record = propose(BEST, seed=2, salt="b", labels=("happy", "sad"))
    assert record.outcome == "hold"
    assert "it answers bad, good; the test rows have happy, sad" in record.reasons[0]
    assert reviews.champion().number == "1"


def test_a_champion_that_cannot_be_fetched_holds_and_is_asked_again_next_time(
    root, propose, reviews, monkeypatch
):
    propose(FAIR, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "download", _gone)
        record = propose(BEST, seed=2, salt="b")
    assert record.outcome == "hold"
    assert "champion version 1 cannot be asked about these test rows: gone" in record.reasons[0]
    assert reviews.champion().number == "1"
    assert "on the same 100 rows" in promotion.run(PARAMS, root, Ledger()).reasons[0]


def _gone(self, version):
    raise TrackingError("gone")


def test_a_champion_registered_by_other_hands_holds(root, propose, reviews):
    client = reviews._client
    client.create_registered_model("reviews")
    client.create_model_version("reviews", str(root))
    client.set_registered_model_alias("reviews", "champion", "1")
    record = propose(BEST, seed=2)
    assert record.outcome == "hold"
    assert "it was not registered by regraft" in record.reasons[0]


@pytest.mark.parametrize("variable", ["DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"])
def test_an_experiment_writes_its_verdict_and_moves_no_alias(root, propose, reviews, monkeypatch, variable):
    with monkeypatch.context() as patch:
        patch.setenv(variable, "try-out")
        record = propose(FAIR, seed=1)
    assert (record.outcome, record.alias_moved) == ("promote", False)
    assert reviews.champion() is None
    assert promotion.run(PARAMS, root, Ledger()).alias_moved  # the same verdict, outside of the experiment


def test_move_alias_false_moves_no_alias(propose, reviews):
    record = propose(FAIR, seed=1, params=changed("promotion.move_alias=false"))
    assert (record.outcome, record.alias_moved) == ("promote", False)
    assert reviews.champion() is None
    assert reviews.history() == []


def test_move_alias_false_leaves_a_champion_its_way_to_answer(propose, reviews):
    propose(FAIR, seed=1)
    for moves, temperature in (("false", 1.0), ("true", 2.0)):
        params = changed(f"promotion.move_alias={moves}")
        propose(FAIR, seed=1, decision={"temperature": 2.0}, params=params)
        assert champion.Champion(reviews, reviews.champion()).decision.temperature == temperature


def test_a_rollback_is_not_undone_by_running_again(root, propose, reviews):
    propose(FAIR, seed=1)
    propose(BEST, seed=2)
    told = promotion.rollback(PARAMS, root, to=None, reason="it swears")
    assert told == "reviews: version 1 is champion again, version 2 is not"
    record = promotion.run(PARAMS, root, Ledger())
    assert not record.alias_moved
    assert record.reasons[0].startswith("version 2 was champion and was rolled back")
    assert reviews.champion().number == "1"
    assert reviews.history()[-1].reason == "it swears"


def test_a_rollback_by_two_is_not_undone_either(root, propose, reviews):
    propose(FAIR, seed=1)
    propose(BETTER, seed=2)
    propose(BEST, seed=3)
    promotion.rollback(PARAMS, root, to=1, reason="both swear")
    record = promotion.run(changed("promotion.alpha=0.04"), root, Ledger())
    assert (record.outcome, record.alias_moved) == ("hold", False)
    assert reviews.champion().number == "1"


def test_predictions_of_other_rows_than_the_manifest_says_are_refused(root, propose):
    propose(FAIR, seed=1)
    path = Evaluation.load(root).path / "predictions.parquet"
    found = predictions.read(path)
    kept = {name: replace(p, ids=tuple(f"other {i}" for i in p.ids)) for name, p in found.items()}
    predictions.write(path, list(kept.values()))
    with pytest.raises(ArtifactError, match="answers other rows than its manifest says"):
        promotion.run(PARAMS, root, Ledger())


def test_by_hand_the_gate_is_asked_again_after_a_rollback(root, propose, reviews):
    propose(FAIR, seed=1)
    propose(BEST, seed=2)
    promotion.rollback(PARAMS, root, to=1, reason="")
    record = promotion.promote_by_hand(PARAMS, root, force=False, reason="it was the data")
    assert (record.outcome, record.alias_moved, reviews.champion().number) == ("promote", True, "2")
    assert record.reasons[0] == "by hand: it was the data"


def test_by_hand_the_gates_no_stands_without_force(root, propose, reviews):
    propose(BETTER, seed=1)
    propose(86, seed=2)
    record = promotion.promote_by_hand(PARAMS, root, force=False, reason="")
    assert (record.outcome, record.alias_moved) == ("hold", False)
    assert reviews.champion().number == "1"


def test_force_needs_a_reason_and_leaves_it_in_the_history(root, propose, reviews):
    propose(BETTER, seed=1)
    propose(WORSE, seed=2)
    with pytest.raises(InputError, match="--force needs --reason"):
        promotion.promote_by_hand(PARAMS, root, force=True, reason=" ")
    record = promotion.promote_by_hand(PARAMS, root, force=True, reason="the law says so")
    assert (record.outcome, record.alias_moved) == ("promote", True)
    assert record.reasons[0] == "by hand, against the verdict 'reject': the law says so"
    assert reviews.history()[-1].reason.startswith(record.reasons[0])
    assert promotion.promote_by_hand(PARAMS, root, force=True, reason="once more") == record
    assert len(reviews.history()) == 2


def test_judging_moves_nothing_and_who_decides_afterwards_is_in_the_history(root, propose, arrange, reviews):
    propose(FAIR, seed=1)
    arrange(root, BEST, seed=2)
    record = promotion.judge(PARAMS, root)
    assert (record.outcome, record.alias_moved, reviews.champion().number) == ("promote", False, "1")
    decided = {"force": False, "reason": "read it", "by": "ann", "version": record.version}
    assert promotion.promote_by_hand(PARAMS, root, **decided).alias_moved
    last = reviews.history()[-1]
    assert (last.version, last.by, last.reason.startswith("by hand: read it")) == ("2", "ann", True)


def test_what_was_decided_about_another_version_moves_nothing(root, propose, arrange, reviews):
    propose(FAIR, seed=1)
    arrange(root, BEST, seed=2)
    judged = promotion.judge(PARAMS, root)
    arrange(root, BEST, seed=3)
    with pytest.raises(
        InputError, match="a model without a version is the candidate now, and version 2 was decided about"
    ):
        promotion.promote_by_hand(PARAMS, root, force=False, reason="", version=judged.version)
    assert reviews.champion().number == "1"


def test_an_evaluation_of_another_model_is_refused(root, arrange):
    arrange(root, FAIR, seed=1)
    evaluation = root / "kept"
    shutil.copytree(Evaluation.folder(root), evaluation)
    arrange(root, FAIR, seed=2)
    shutil.rmtree(Evaluation.folder(root))
    evaluation.rename(Evaluation.folder(root))
    with pytest.raises(ArtifactError, match="is about another model: run `dvc repro evaluation`"):
        promotion.run(PARAMS, root, Ledger())


def test_weights_that_are_not_the_manifests_are_not_registered(root, arrange, reviews):
    arrange(root, FAIR, seed=1)
    weights = TrainedModel.folder(root) / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match=r"its manifest says .* run `dvc repro -f finetuning`"):
        promotion.run(PARAMS, root, Ledger())
    assert reviews.versions() == []


def page(root):
    return (root / "reports" / "promotion.md").read_text(encoding="utf-8")


def test_the_page_tells_every_condition_those_that_hold_too(root, propose):
    propose(BETTER, seed=1)
    propose(WORSE, seed=2)
    found = page(root)
    assert "| champion | **worse** | accuracy 0.550 < champion 0.850" in found
    assert "| majority | yes | accuracy 0.550 > majority 0.400" in found
    assert "| slices | **worse** | slice first" not in found, "the first 50 rows are alike"
    assert "| test rows | yes | 100 test rows show differences of accuracy from about 0.1" in found
    assert "| judgements | yes | 2 candidates judged on these test rows, at most 20: " in found
    assert "| first | no evidence | insufficient evidence: 50 of at least 100 rows |" in found
    checks = {check["name"]: check for check in verdict(root)["checks"]}
    assert checks["champion"]["outcome"] == "reject"
    assert checks["slices"]["parts"][0]["name"] == "first"


def test_what_a_name_holds_does_not_break_the_table(root, propose, arrange):
    propose(FAIR, seed=1)
    arrange(root, BEST, seed=2)
    place = Evaluation.load(root).path / "slices.parquet"
    slices.write(place, [f"a{n:03}" for n in range(ROWS)], {"a|b\nc": np.ones(ROWS, dtype=bool)})
    promotion.run(PARAMS, root, Ledger())
    assert "| a\\|b c | yes | 100 rows, accuracy 0.980, champion 0.700" in page(root)


def test_the_champion_keeps_who_challenged_it_and_how_that_ended(propose, reviews):
    propose(BETTER, seed=1)
    propose(86, seed=2)
    propose(WORSE, seed=3)
    tags = reviews.champion().tags
    assert (tags["regraft.challenger.2"], tags["regraft.challenger.3"]) == ("hold", "reject")


def test_judgements_on_the_same_test_rows_are_counted_once_a_candidate(root, propose):
    strict = changed("promotion.gate.judgements=2")
    for seed in (1, 2, 2):
        propose(FAIR, seed=seed, params=strict)
    assert verdict(root)["figures"]["judgements.count"] == 2
    record = propose(BEST, seed=3, params=strict)
    assert (record.outcome, record.alias_moved) == ("hold", False)
    (reason,) = record.reasons
    assert reason.startswith("3 candidates judged on these test rows, at most 2: if none is better, one is ")
    assert "a chance of 7.31 %; take fresh test rows: " in reason
    assert "preparation.salt" in reason
    propose(BEST, seed=3, params=strict, salt="b")
    assert verdict(root)["figures"]["judgements.count"] == 1, "other test rows, another count"


def test_force_goes_against_the_limit_of_judgements_and_says_so(root, propose, reviews):
    propose(FAIR, seed=1)
    strict = changed("promotion.gate.judgements=1")
    assert propose(BEST, seed=2, params=strict).outcome == "hold"
    record = promotion.promote_by_hand(strict, root, force=True, reason="the test rows are fresh enough")
    assert (record.outcome, reviews.champion().number) == ("promote", "2")
    assert record.reasons[1].startswith("2 candidates judged on these test rows, at most 1")


def test_slices_that_are_missing_hold_until_they_are_there(root, propose, arrange):
    propose(FAIR, seed=1)
    arrange(root, BEST, seed=2)
    place = Evaluation.load(root).path / "slices.parquet"
    kept = place.read_bytes()
    place.unlink()
    record = promotion.run(PARAMS, root, Ledger())
    assert record.outcome == "hold"
    assert "slices.parquet is missing: run `dvc repro evaluation` first" in record.reasons[0]
    assert "| slices | **not known** | " in page(root)
    place.write_bytes(kept)
    assert promotion.run(PARAMS, root, Ledger()).outcome == "promote"


def convert(root, **proofs):
    with files.replace_directory(ConvertedCheckpoint.folder(root)) as draft:
        ConvertedCheckpoint.save(
            draft, family="bert", architecture="Bert", labels=LABELS, source="", parameters={}, fresh=[],
            proofs=proofs,
        )  # fmt: skip
    return ConvertedCheckpoint.load(root).digest


@pytest.mark.parametrize(
    ("proofs", "other", "outcome", "reason"),
    [
        ({"content": "all tensors"}, False, "promote", "accuracy 0.980 > majority 0.400"),
        ({"load": "yes"}, False, "hold", "the conversion has no proof of content: it was not made"),
        ({"content": "all tensors"}, True, "hold", "is not the checkpoint that the model was trained from"),
    ],
)
def test_required_proofs_are_those_of_the_models_own_conversion(
    root, propose, proofs, other, outcome, reason
):
    base = "sha256:other" if other else convert(root, **proofs)
    convert(root, **proofs)
    record = propose(BEST, seed=1, base=base, params=changed("promotion.gate.proofs=[content]"))
    assert record.outcome == outcome
    assert reason in record.reasons[0]


def test_required_proofs_without_a_conversion_hold(propose):
    record = propose(BEST, seed=1, base="sha256:b", params=changed("promotion.gate.proofs=[content]"))
    assert record.outcome == "hold"
    assert "run `dvc repro conversion` first" in record.reasons[0]


@pytest.mark.parametrize(
    ("proofs", "told"),
    [
        (None, "run `dvc repro conversion` first"),
        ({}, "the conversion has proven nothing"),
        ({"structure": "all tensors"}, "is not the checkpoint that the model was trained from"),
    ],
)
def test_what_was_not_verified_is_held_though_the_gate_names_no_proof(root, propose, reviews, proofs, told):
    base = "sha256:other"
    if proofs is not None:
        digest = convert(root, **proofs)
        base = base if proofs else digest
    record = propose(BEST, seed=1, base=base)
    assert record.outcome == "hold"
    assert told in record.reasons[0]
    assert reviews.champion() is None


def test_an_error_that_nobody_foresaw_holds(root, propose, reviews, monkeypatch):
    propose(FAIR, seed=1)

    def exhausted(*args):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(champion.Champion, "answers", exhausted)
    record = propose(BEST, seed=2, salt="b")  # other test rows, which the champion has to answer
    assert record.outcome == "hold"
    told = "champion version 1 cannot be asked about these test rows: RuntimeError: DefaultCPUAllocator"
    assert told in record.reasons[0]
    record = propose(BEST, seed=3, params=changed("promotion.gate.maximum_latency_ratio=2"))
    assert record.reasons == ("latency ratio: RuntimeError: DefaultCPUAllocator: not enough memory",)
    assert reviews.champion().number == "1"


@pytest.mark.parametrize(
    ("calibration", "outcome", "told"),
    [
        ({"after": {"ece": {"value": 0.04}}}, "promote", "expected calibration error 0.040 <= 0.05"),
        ({"after": {"ece": {"value": 0.06}}}, "hold", "expected calibration error 0.060 > 0.05"),
        ({}, "hold", "tells no calibration error: rows whose answers are no probabilities have none"),
    ],
)
def test_calibration_is_what_evaluation_measured_at_the_temperature_of_serving(
    root, propose, calibration, outcome, told
):
    strict = changed("promotion.gate.maximum_ece=0.05")
    assert propose(BEST, seed=1, params=strict, calibration=calibration).outcome == outcome
    assert told in page(root)


def test_a_model_that_is_too_large_is_held_with_its_size(root, propose):
    record = propose(BEST, seed=1, params=changed("promotion.gate.maximum_megabytes=0.001"))
    assert record.outcome == "hold"
    assert record.reasons[0].startswith("millions of bytes of the model directory 0.0")
    assert record.reasons[0].endswith("> 0.001")


@pytest.mark.parametrize(("ratio", "outcome"), [(1000, "promote"), (0.000001, "hold")])
def test_both_models_answer_to_tell_how_fast_they_are(root, propose, ratio, outcome):
    propose(FAIR, seed=1)
    record = propose(BEST, seed=2, params=changed(f"promotion.gate.maximum_latency_ratio={ratio}"))
    assert record.outcome == outcome
    assert 0 < verdict(root)["figures"]["latency.value"] < 1000


def test_a_model_that_cannot_be_timed_is_held(root, propose, reviews, monkeypatch):
    propose(FAIR, seed=1)
    monkeypatch.setattr(Registry, "download", _gone)
    record = propose(BEST, seed=2, params=changed("promotion.gate.maximum_latency_ratio=2"))
    assert (record.outcome, record.reasons) == ("hold", ("latency ratio: gone",))


def test_a_metric_that_there_is_not_is_refused_before_anything_moves(propose, reviews):
    with pytest.raises(ParamsError, match=r"promotion.gate.not_worse: no metric 'acuracy'.*'accuracy'"):
        propose(BEST, seed=1, params=changed("promotion.gate.not_worse={acuracy: 0.1}"))
    assert reviews.champion() is None


def test_a_metric_that_may_not_fall_is_told_beside_the_champions(root, propose):
    propose(FAIR, seed=1)
    propose(BEST, seed=2, params=changed("promotion.gate.not_worse={log_loss: 0.01}"))
    assert "| not worse in log_loss | yes | log loss 0." in page(root)


def spoil(found):
    broken = found.answer.copy()
    broken[7, 1] = np.nan
    return replace(found, answer=broken)


def test_answers_that_are_not_numbers_are_held(propose, reviews):
    record = propose(BEST, seed=1, spoil=spoil)
    assert (record.outcome, reviews.champion()) == ("hold", None)
    assert "the candidate: 1 of 100 rows are no probabilities" in record.reasons[0]


def test_test_rows_of_one_class_are_held(propose, reviews):
    record = propose(BEST, seed=1, classes=1)
    assert (record.outcome, reviews.champion()) == ("hold", None)
    assert "all 100 test rows have the label 'bad'" in record.reasons[0]


def test_kept_answers_in_another_order_of_labels_are_not_used(root, propose, reviews, tmp_path):
    propose(FAIR, seed=1)
    before = champion.Champion(reviews, reviews.champion()).answers(["bad"])
    propose(BEST, seed=2, labels=("good", "bad"))  # the same rows, and the same numbers of classes
    kept = reviews.predictions(reviews.version("1"), tmp_path, test=Evaluation.load(root).test)
    np.testing.assert_allclose(predictions.read(kept)["model"].answer[0], before[0, ::-1], atol=1e-6)


def test_kept_answers_of_other_labels_are_not_taken_for_ours(propose, reviews):
    propose(FAIR, seed=1)
    record = propose(BEST, seed=2, labels=("happy", "sad"))
    assert (record.outcome, reviews.champion().number) == ("hold", "1")
    assert "it answers bad, good; the test rows have happy, sad" in record.reasons[0]


def test_a_champion_whose_kept_answers_were_deleted_holds(root, propose, reviews):
    propose(FAIR, seed=1)
    (kept,) = (root / ".regraft" / "mlartifacts").rglob("predictions/*.parquet")
    kept.unlink()
    record = propose(BEST, seed=2)
    assert (record.outcome, reviews.champion().number) == ("hold", "1")
    assert "champion version 1 cannot be asked about these test rows: " in record.reasons[0]


def test_two_promotions_at_once_are_decided_one_after_the_other(
    root, arrange, tmp_path, monkeypatch, reviews
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri(root))
    places = [tmp_path / "one", tmp_path / "two"]
    for seed, place in enumerate(places, start=1):
        arrange(place, BETTER, seed=seed)
    begin = Barrier(2)

    def work(place):
        begin.wait()
        return promotion.run(PARAMS, place, Ledger())

    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(work, places))
    assert sorted(record.outcome for record in records) == ["hold", "promote"]
    (winner,) = [record for record in records if record.alias_moved]
    assert [move.version for move in reviews.history()] == [winner.version] == [reviews.champion().number]
    befores = {verdict(place)["champion_before"] for place in places}
    assert befores == {None, winner.version}


def _on_a_machine_of_its_own(place):
    """Its file locks are nobody else's."""
    (place / "tmp").mkdir()
    os.environ["TMPDIR"], tempfile.tempdir = str(place / "tmp"), None
    promotion.run(PARAMS, place, Ledger())


@pytest.mark.e2e
def test_of_many_promotions_on_many_machines_each_meets_the_champion_of_its_time(served, arrange, tmp_path):
    count = int(os.environ.get("REGRAFT_MACHINES", "8"))  # 50 take minutes on two cores
    places = [tmp_path / str(number) for number in range(count)]
    for number, place in enumerate(places):
        arrange(place, 50 + number * 49 // count, seed=number + 1)
    MlflowClient().create_experiment("reviews", artifact_location=str(tmp_path / "artifacts"))
    context = multiprocessing.get_context("spawn")  # a fork would inherit locks of threads that it has not
    machines = [context.Process(target=_on_a_machine_of_its_own, args=(place,)) for place in places]
    for machine in machines:
        machine.start()
    for machine in machines:
        machine.join()
    assert [machine.exitcode for machine in machines] == [0] * count

    reviews = Registry(tmp_path, "reviews")
    history = [move.version for move in reviews.history()]
    verdicts = {found["version"]: found for found in map(verdict, places)}
    assert sorted(verdicts) == sorted(str(number + 1) for number in range(count))
    assert {number for number, found in verdicts.items() if found["alias_moved"]} == set(history)
    befores = [verdicts[number]["champion_before"] for number in history]
    assert befores == [None, *history[:-1]], "each was judged against the champion that it followed"
    assert all(found["champion_before"] in {None, *history} for found in verdicts.values())
    assert reviews.champion().number == history[-1]
    assert {version.tags["regraft.outcome"] for version in reviews.versions()} <= {
        "promote",
        "hold",
        "reject",
    }
    assert [model.name for model in MlflowClient().search_registered_models()] == ["reviews"]


@pytest.mark.e2e
def test_a_server_that_goes_away_in_the_middle_of_the_gate_holds(served, arrange, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    arrange(tmp_path, FAIR, seed=1)
    files.write_text(tmp_path / "reports" / "promotion.md", "# promote: reviews version 7\n")
    judge = promotion._judge

    def and_then_none(*args):
        served.stop()
        return judge(*args)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_judge", and_then_none)
        with pytest.raises(
            HeldError, match=f"the promotion did not end: MLflow at {served.address}"
        ) as caught:
            promotion.run(PARAMS, tmp_path, Ledger())
    assert (caught.value.exit_code, caught.value.lasting()) == (3, False)
    told = page(tmp_path)
    assert told.startswith("# hold: the gate did not end\n\n- hold: the promotion did not end: MLflow at")
    assert "promote" not in told
    served.start()
    reviews = Registry(tmp_path, "reviews")
    assert (reviews.champion(), reviews.history()) == (None, [])


@pytest.mark.e2e
def test_a_server_is_told_of_each_candidate_that_could_not_be_judged(served, arrange, tmp_path):
    MlflowClient().create_experiment("reviews")
    reviews = Registry(tmp_path, "reviews")
    arrange(tmp_path, FAIR, seed=1)
    assert promotion.run(PARAMS, tmp_path, Ledger()).alias_moved
    bad = [
        ({"spoil": spoil}, "1 of 100 rows are no probabilities"),
        ({"classes": 1}, "they tell no classes apart"),
        ({"base": "sha256:other"}, "is not the checkpoint that the model was trained from"),
        ({"labels": ("bad", "fine"), "salt": "b"}, "it answers bad, good; the test rows have bad, fine"),
    ]
    for number, (how, told) in enumerate(bad, 2):
        arrange(tmp_path, BEST, seed=number, **how)
        record = promotion.run(PARAMS, tmp_path, Ledger())
        assert (record.version, record.outcome, record.alias_moved) == (str(number), "hold", False)
        assert any(told in reason for reason in record.reasons), record.reasons
        assert reviews.version(str(number)).tags["regraft.outcome"] == "hold"
    arrange(tmp_path, BEST, seed=7, labels=LABELS[::-1], salt="c")
    assert promotion.run(PARAMS, tmp_path, Ledger()).outcome in ("promote", "hold", "reject")
    assert reviews.champion().number in ("1", "6")
    assert verdict(tmp_path)["figures"]["champion.rows"] == ROWS, "its answers were read in our order"


@pytest.mark.e2e
def test_artifacts_that_cannot_be_stored_hold_and_are_stored_next_time(
    served, arrange, tmp_path, monkeypatch
):
    """As of a full disk: the server has no place to write to."""
    arrange(tmp_path, FAIR, seed=1)
    MlflowClient().create_experiment("reviews")  # the server's own place
    served.artifacts.write_text("no directory")
    with pytest.raises(HeldError, match="the promotion did not end: MLflow at"):
        promotion.run(PARAMS, tmp_path, Ledger())
    reviews = Registry(tmp_path, "reviews")
    assert (reviews.champion(), reviews.versions()) == (None, [])
    served.artifacts.unlink()
    record = promotion.run(PARAMS, tmp_path, Ledger())
    assert (record.version, record.alias_moved) == ("1", True)


@pytest.mark.e2e
def test_a_champion_that_lost_its_files_its_alias_or_itself_is_never_passed_over(served, arrange, tmp_path):
    MlflowClient().create_experiment("reviews")
    arrange(tmp_path, FAIR, seed=1)
    promotion.run(PARAMS, tmp_path, Ledger())
    shutil.rmtree(served.artifacts)
    arrange(tmp_path, BEST, seed=2)
    asked = "champion version 1 cannot be asked about these test rows: "
    assert asked in promotion.run(PARAMS, tmp_path, Ledger()).reasons[0]
    arrange(tmp_path, BEST, seed=2, salt="b")  # other test rows, which the champion has to answer
    record = promotion.run(PARAMS, tmp_path, Ledger())
    assert (record.outcome, record.alias_moved) == ("hold", False)
    assert asked in record.reasons[0]
    MlflowClient().set_registered_model_alias("reviews", "champion", "2")
    assert (
        "is the champion of reviews already, by other hands"
        in promotion.run(PARAMS, tmp_path, Ledger()).reasons[0]
    )
    MlflowClient().delete_model_version("reviews", "2")
    arrange(tmp_path, BEST, seed=3)
    with pytest.raises(
        HeldError, match="version 1 was champion, and other hands deleted it or took its alias away"
    ):
        promotion.run(PARAMS, tmp_path, Ledger())
    assert [move.version for move in Registry(tmp_path, "reviews").history()] == ["1"]


@pytest.mark.parametrize("written", [0, 1])
def test_an_alias_never_moves_without_the_verdict_that_moved_it(root, propose, reviews, monkeypatch, written):
    """MLflow goes away when the verdict is written for the first time, or for the second."""
    note, times = promotion._note, iter(range(9))

    def fail(*told):
        if next(times) == written:
            raise TrackingError("gone")
        note(*told)

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_note", fail)
        with pytest.raises(HeldError):
            propose(BETTER, seed=1)
    assert (reviews.champion() is not None) == bool(written)
    again = promotion.run(PARAMS, root, Ledger())
    assert (again.outcome, again.alias_moved) == ("promote", True)
    assert "accuracy 0.850 > majority 0.400" in again.reasons[0]
    assert verdict(root)["checks"]


def test_a_verdict_on_many_slices_fits_a_tag():
    parts = tuple(
        Check(f"label = {number}", "reject" if number < 90 else "promote", "told " * 20)
        for number in range(2000)
    )
    whole = Ruling("reject", ("worse",), (Check("slices", "reject", "", {}, parts),), "1", "2")
    text = whole.written()
    assert len(text) < 100_000
    kept = Ruling.of(Version("1", "run", {TAG: text}))
    assert kept.reasons == ("worse",)
    assert {part.outcome for part in kept.checks[0].parts} == {"reject"}


def test_a_version_whose_changes_were_committed_since_can_be_built_again(root, propose, reviews, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=root, check=True)

    monkeypatch.chdir(root)
    (root / "notes.txt").write_text("1")
    git("init", "--quiet")
    git("add", "notes.txt")
    git("commit", "--quiet", "-m", "1")
    (root / "notes.txt").write_text("2")
    propose(BETTER, seed=1)
    assert reviews.champion().tags["regraft.changed"] == "notes.txt"
    git("commit", "--quiet", "-am", "2")
    promotion.run(PARAMS, root, Ledger())
    assert not reviews.champion().tags["regraft.changed"]
