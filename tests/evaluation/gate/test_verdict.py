import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from scipy.stats import binom

from tasks.errors import ParamsError
from tasks.evaluation.gate import verdict
from tasks.evaluation.gate.checks import Evidence, Resampling
from tasks.evaluation.gate.pairing import detectable, mcnemar
from tasks.evaluation.gate.verdict import compare, gate
from tasks.evaluation.predictions import Predictions
from tasks.params import GateParams


def _answers(correct, name="candidate"):
    """Two classes; row i is answered rightly where `correct[i]`."""
    correct = np.asarray(correct, dtype=bool)
    labels = np.arange(len(correct)) % 2
    chosen = np.where(correct, labels, 1 - labels)
    ids = tuple(f"row{i}" for i in range(len(correct)))
    return Predictions(name, ids, labels, np.eye(2, dtype=np.float32)[chosen] * 0.8 + np.float32(0.1))


def _pair(wins, losses, both=60, neither=20):
    """A candidate and a rival of which the first alone is right `wins` times, the second `losses` times."""
    ours = [1] * wins + [0] * losses + [1] * both + [0] * neither
    theirs = [0] * wins + [1] * losses + [1] * both + [0] * neither
    return _answers(ours), _answers(theirs, "rival")


def _gate(candidate, champion=None, baselines=None, must_beat=("rival",), conditions=None, **more):
    evidence = Evidence(
        candidate=candidate,
        champion=champion and replace(champion, contestant="champion"),
        baselines=baselines or {},
        **{"slices": {}, "proofs": {"structure": "all tensors"}, **more},
    )
    return gate(
        evidence,
        GateParams.model_validate(conditions or {}),
        must_beat=must_beat,
        resampling=Resampling(alpha=0.05, resamples=200, seed=1),
    )


def _check(found, name):
    (check,) = [check for check in found.checks if check.name == name]
    return check


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (1, 9, 22 / 1024),  # 2 (1 + 10) / 2^10
        (121, 59, 4.434e-6),  # the table 101, 121, 59, 33 of statsmodels' own tests
    ],
)
def test_mcnemar_gives_known_values(wins, losses, expected):
    assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-3)
    assert mcnemar(losses, wins) == mcnemar(wins, losses)


def test_a_comparison_counts_pairs():
    candidate, rival = _pair(wins=30, losses=10)
    found = compare(candidate, rival, confidence=0.95, resamples=500, seed=1)
    assert (found.rows, found.wins, found.losses) == (120, 30, 10)
    assert found.difference == pytest.approx(found.score - found.other) == pytest.approx(20 / 120)
    assert 0 < found.low < found.difference < found.high


def test_the_paired_interval_equals_that_of_rows_drawn_one_by_one():
    candidate, rival = _pair(wins=40, losses=25, both=300, neither=100)
    found = compare(candidate, rival, confidence=0.9, resamples=4000, seed=1)
    differences = candidate.correct.astype(float) - rival.correct
    drawn = np.random.default_rng(2).integers(0, 465, (4000, 465))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.05, 0.95])
    assert (found.low, found.high) == pytest.approx((low, high), abs=2 / 465)


def test_the_first_version_is_promoted_when_it_beats_the_baselines():
    candidate, rival = _pair(wins=30, losses=5)
    found = _gate(candidate, baselines={"rival": rival})
    assert found.outcome == "promote"
    assert found.reasons[0].startswith(
        "accuracy 0.783 > rival 0.565 on the same 115 rows, paired 95 % interval [+0"
    )
    assert found.reasons[0].endswith("p < 0.001")
    assert _check(found, "rival").figures["wins"] == 30


def test_a_candidate_that_only_equals_a_baseline_is_held_with_what_could_have_been_seen():
    candidate, rival = _pair(wins=12, losses=10)
    found = _gate(candidate, baselines={"rival": rival})
    assert found.outcome == "hold"
    assert "not significantly better at 0.05; 102 rows show differences from about 0.127" in found.reasons[0]


def test_a_worse_candidate_is_rejected_in_numbers():
    candidate, champion = _pair(wins=5, losses=30)
    found = _gate(candidate, champion, must_beat=())
    assert found.outcome == "reject"
    assert found.reasons[0].startswith("accuracy 0.565 < champion 0.783 on the same 115 rows")


def test_beating_the_champion_is_not_enough_where_a_baseline_is_not_beaten():
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(candidate, champion, {"rival": candidate})
    assert found.outcome == "hold"
    assert len(found.reasons) == 1
    assert "= rival" in found.reasons[0]


def test_the_same_model_again_is_held():
    candidate, _ = _pair(wins=30, losses=5)
    found = _gate(candidate, candidate, must_beat=())
    assert found.outcome == "hold"
    assert "p = 1.000" in found.reasons[0]


def test_without_anything_to_beat_the_first_version_is_told_so():
    found = _gate(_answers([1, 0] * 5), must_beat=())
    assert found.outcome == "promote"
    assert _check(found, "test rows").sentence == "10 test rows, and nothing to compare with"


@pytest.mark.parametrize(("rows", "outcome"), [(5, "hold"), (6, "promote")])
def test_too_few_rows_to_decide_anything_hold(rows, outcome):
    found = _gate(_answers([1] * rows), _answers([0] * rows), must_beat=())
    assert found.outcome == outcome
    assert mcnemar(rows, 0) <= 0.05 or "5 test rows decide nothing at 0.05" in found.reasons[-1]


def test_the_difference_that_the_rows_can_show_is_always_told():
    candidate, champion = _pair(wins=30, losses=5)
    told = _check(_gate(candidate, champion, must_beat=()), "test rows")
    assert told.figures["detectable"] == pytest.approx(detectable(115, 35, alpha=0.05), rel=1e-4)
    assert told.sentence == (
        "115 test rows show differences of accuracy from about 0.143 on, 4 times out of 5 (champion)"
    )


def test_a_missing_baseline_holds():
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(candidate, champion, {}, must_beat=("tfidf",))
    assert (found.outcome, found.reasons) == ("hold", ("baseline 'tfidf' was not evaluated",))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda p: replace(p, ids=(*p.ids[:-1], "other")),
            "other test rows: 115 against the candidate's 115, 114",
        ),
        (
            lambda p: replace(p, ids=p.ids[::-1]),
            "115 shared; evaluate both on the same rows in the same order",
        ),
        (lambda p: replace(p, actual=1 - p.actual), "other labels: 115 of 115 rows differ"),
        (
            lambda p: replace(p, answer=p.answer * np.nan),
            "champion: 115 of 115 rows are no prob",
        ),
        (lambda p: replace(p, answer=p.answer * 3), "champion: 115 of 115 rows are no prob"),
        (lambda p: replace(p, answer=p.answer[:-1]), "115 ids, 115 labels and 114 answers"),
        (lambda p: replace(p, ids=(p.ids[0], *p.ids[:-1])), "champion answers 1 of its 115 test rows twice"),
        (
            lambda p: replace(p, answer=np.pad(p.answer, ((0, 0), (0, 1)))),
            "champion knows 3 classes, the candidate 2",
        ),
        (lambda p: _answers([]), "champion has no test rows"),
        (lambda p: replace(p, kind="score"), "answered rows of kind score, the candidate rows of kind label"),
    ],
)
def test_what_cannot_be_compared_holds_with_its_reason(spoil, reason):
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(candidate, spoil(champion), must_beat=())
    assert found.outcome == "hold"
    assert any(reason in text for text in found.reasons), found.reasons


def test_a_candidate_that_is_not_a_number_or_empty_holds():
    candidate, champion = _pair(wins=30, losses=5)
    broken = candidate.answer.copy()
    broken[3, 1] = np.nan
    found = _gate(replace(candidate, answer=broken), champion, must_beat=())
    assert (found.outcome, found.reasons[0][:28]) == ("hold", "the candidate: 1 of 115 rows")
    assert _gate(_answers([]), must_beat=()).outcome == "hold"


def test_a_test_set_of_one_class_holds():
    candidate, champion = _pair(wins=30, losses=5)
    alike = [replace(p, actual=np.zeros_like(p.actual)) for p in (candidate, champion)]
    found = _gate(*alike, must_beat=(), labels=("bad", "good"))
    assert found.outcome == "hold"
    assert "all 115 test rows have the label 'bad': they tell no classes apart" in found.reasons[0]


def test_a_champion_that_could_not_be_asked_holds_and_leaves_the_question_open():
    found = _gate(_answers([1] * 50), must_beat=(), faults={"champion": "it is gone"})
    assert (found.outcome, found.reasons, found.settled) == ("hold", ("it is gone",), False)


@pytest.mark.parametrize(
    ("margin", "outcome", "told"),
    [
        (0.0, "promote", "p < 0.001"),
        (0.01, "promote", "by more than 0.01"),
        (0.2, "hold", "better, but not shown to be so by more than 0.2"),
    ],
)
def test_a_margin_must_be_exceeded_by_the_whole_interval(margin, outcome, told):
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(candidate, champion, must_beat=(), conditions={"margin": margin})
    assert found.outcome == outcome
    assert _check(found, "champion").sentence.endswith(told)


def test_the_margin_is_the_champions_and_not_the_baselines():
    candidate, rival = _pair(wins=30, losses=5)
    assert _gate(candidate, baselines={"rival": rival}, conditions={"margin": 0.2}).outcome == "promote"


def _surer(answers, sure):
    """The same choices, each with probability `sure`."""
    values = np.where(answers.answer > 0.5, sure, 1 - sure).astype(np.float32)
    return replace(answers, answer=values)


@pytest.mark.parametrize(
    ("sure", "margin", "outcome", "told"),
    [
        (0.9, 0.0, "promote", "not worse by more than 0"),
        (0.99, 0.1, "hold", "not shown to be worse by at most 0.1"),
        (0.99999, 0.1, "reject", "worse by more than 0.1"),
        (0.99999, 9.0, "promote", "not worse by more than 9"),
    ],
)
def test_a_metric_must_be_shown_not_to_be_worse(sure, margin, outcome, told):
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(
        _surer(candidate, sure), champion, must_beat=(), conditions={"not_worse": {"log_loss": margin}}
    )
    check = _check(found, "not worse in log_loss")
    assert (check.outcome, found.outcome) == (outcome, outcome)
    assert check.sentence.endswith(told)


def test_direction_is_the_metrics_own():
    candidate, champion = _pair(wins=30, losses=5)
    conditions = {"not_worse": {"macro_f1": 0.0, "log_loss": 0.0}}
    better = _gate(candidate, champion, must_beat=(), conditions=conditions)
    worse = _gate(champion, candidate, must_beat=(), conditions=conditions)
    names = [f"not worse in {name}" for name in conditions["not_worse"]]
    assert [_check(better, name).outcome for name in names] == ["promote", "promote"]
    assert [_check(worse, name).outcome for name in names] == ["reject", "reject"]


def test_a_metric_that_the_kind_does_not_have_is_refused_by_name():
    candidate, _ = _pair(wins=30, losses=5)
    with pytest.raises(
        ParamsError, match=r"promotion.gate.not_worse: no metric 'f1' .* known: accuracy, brier"
    ):
        _gate(candidate, must_beat=(), conditions={"not_worse": {"f1": 0.1}})


def _rare(name, common, rare):
    """180 rows of one class and 20 of another; so many of each are answered rightly."""
    labels = np.repeat([0, 1], [180, 20])
    right = np.concatenate([np.arange(180) < common, np.arange(20) < rare])
    chosen = np.where(right, labels, 1 - labels)
    answer = np.eye(2, dtype=np.float32)[chosen] * 0.8 + np.float32(0.1)
    return Predictions(name, tuple(f"row{i}" for i in range(200)), labels, answer)


@pytest.mark.parametrize(
    ("conditions", "outcome", "told"),
    [
        ({}, "hold", "accuracy 0.915 > rival 0.900"),
        ({"primary": "macro_f1"}, "promote", "macro f1 0.815 > rival 0.474 on the same 200 rows"),
        ({"primary": "macro_f1", "margin": 0.3}, "hold", "not shown to be so by more than 0.3"),
        ({"primary": "macro_f1", "margin": 0.2}, "promote", ": by more than 0.2"),
    ],
)
def test_the_primary_metric_decides_what_is_better(conditions, outcome, told):
    candidate, rival = _rare("model", 165, 18), _rare("rival", 180, 0)
    champion = rival if "margin" in conditions else None
    found = _gate(candidate, champion, {"rival": rival}, conditions=conditions, labels=("common", "rare"))
    assert found.outcome == outcome
    names = [check for check in found.checks if told in check.sentence]
    assert [check.outcome for check in names] == [outcome]
    other = _gate(rival, None, {"rival": replace(candidate, contestant="rival")}, conditions=conditions)
    assert other.outcome == ("reject" if "primary" in conditions else "hold")


def test_of_a_primary_metric_of_which_less_is_better_the_negative_is_compared():
    candidate, rival = _pair(wins=30, losses=5)
    conditions = {"primary": "log_loss"}
    found = _gate(candidate, baselines={"rival": rival}, conditions=conditions)
    check = _check(found, "rival")
    assert found.outcome == "promote"
    assert check.sentence.startswith("negative log loss -0.5")
    assert check.figures["p_value"] == pytest.approx(2 / 201)
    assert _gate(rival, baselines={"rival": candidate}, conditions=conditions).outcome == "reject"
    with pytest.raises(ParamsError, match=r"promotion.gate.primary: no metric 'f1'"):
        _gate(candidate, baselines={"rival": rival}, conditions={"primary": "f1"})


def _sure(name, sure):
    """20 rows of each share from .55 to .95 that are right so often, said with these confidences."""
    hit = np.concatenate([np.arange(20) < right for right in range(11, 20)])
    labels, share = np.arange(180) % 2, np.repeat(sure, 20).astype(np.float32)
    chosen = np.where(hit, labels, 1 - labels)
    answer = np.where(np.arange(2) == chosen[:, None], share[:, None], 1 - share[:, None])
    return Predictions(name, tuple(f"row{i}" for i in range(180)), labels, answer)


def test_a_difference_that_the_draws_contradict_decides_nothing():
    """Rows that happen to be calibrated to a hair are so in no draw of them."""
    candidate = _sure("model", [right / 20 for right in range(11, 20)])
    rival = _sure("rival", [0.752] * 9)
    conditions = {"primary": "ece"}
    check = _check(_gate(candidate, baselines={"rival": rival}, conditions=conditions), "rival")
    assert check.figures["difference"] > 0 > check.figures["high"]
    assert (check.outcome, check.figures["p_value"]) == ("hold", 1)
    check = _check(_gate(rival, baselines={"rival": candidate}, conditions=conditions), "rival")
    assert check.figures["difference"] < 0 < check.figures["low"]
    assert (check.outcome, check.figures["p_value"]) == ("hold", 1)


def test_a_primary_metric_that_some_draws_do_not_have_promotes_nobody():
    labels = np.zeros(60, dtype=np.int64)
    labels[0] = 1  # a third of all draws lacks this row
    answer = np.tile(np.array([[0.9, 0.1]], dtype=np.float32), (60, 1))
    ids = tuple(f"row{i}" for i in range(60))
    worse = Predictions("rival", ids, labels, answer)
    better = Predictions("model", ids, labels, np.where(labels[:, None] == 1, answer[:, ::-1], answer))
    found = _gate(better, baselines={"rival": worse}, conditions={"primary": "macro_f1"}, labels=("a", "b"))
    assert found.outcome == "hold"


def _with_slice(inside, outside, **conditions):
    """A candidate that is better by `outside` of 200 rows, and by `inside` (or worse) in a slice of 100."""
    rows = np.arange(300)
    losses = np.isin(rows, np.arange(max(-inside, 0)))
    ours = ~losses
    theirs = ~((rows >= 100) & (rows < 100 + outside))
    return _gate(
        _answers(ours), _answers(theirs), must_beat=(), slices={"short": rows < 100, "rest": rows >= 100},
        conditions=conditions,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inside", "outcome", "told"),
    [
        (-30, "reject", "slice short: 100 rows, accuracy 0.700, champion 1.000, gain -0.300"),
        (-4, "promote", "2 slices, none shown to be worse than the champion by more than 0.05 (least: short, -0.040)"),
        (0, "promote", "2 slices, none shown to be worse than the champion by more than 0.05 (least: short, +0.000)"),
    ],
)  # fmt: skip
def test_a_protected_slice_that_is_shown_to_be_worse_rejects(inside, outcome, told):
    found = _with_slice(inside, outside=120)
    assert found.outcome == outcome
    assert told in _check(found, "slices").sentence


def test_a_slice_with_too_few_rows_is_no_evidence_and_fails_nobody():
    found = _with_slice(-30, outside=120, slices={"minimum": 150, "margin": 0.05})
    short = next(part for part in _check(found, "slices").parts if part.name == "short")
    assert found.outcome == "promote"
    assert short.sentence == "insufficient evidence: 100 of at least 150 rows"


def test_an_empty_slice_is_no_evidence_either():
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(candidate, champion, must_beat=(), slices={"none": np.zeros(115, dtype=bool)})
    assert found.outcome == "promote"
    assert _check(found, "slices").sentence == (
        "no slice has enough rows to be judged; 1 more with too few rows are no evidence"
    )


def test_slices_that_cannot_be_read_hold_unless_nothing_is_protected():
    candidate, champion = _pair(wins=30, losses=5)
    lost = {"slices": None, "faults": {"slices": "slices.parquet is missing"}}
    found = _gate(candidate, champion, must_beat=(), **lost)
    assert (found.outcome, found.reasons, found.settled) == (
        "hold",
        ("slices: slices.parquet is missing",),
        False,
    )
    assert _gate(candidate, champion, must_beat=(), conditions={"slices": None}, **lost).outcome == "promote"


@pytest.mark.parametrize(
    ("conditions", "known", "outcome", "told"),
    [
        ({"maximum_ece": 0.2}, {"ece": 0.117}, "promote", "expected calibration error 0.117 <= 0.2"),
        ({"maximum_ece": 0.1}, {"ece": 0.117}, "hold", "expected calibration error 0.117 > 0.1"),
        ({"maximum_ece": 0.1}, {}, "hold", "ece: not known"),
        ({"maximum_megabytes": 90}, {"size": 90_000_000}, "promote", "bytes of the model directory 90.000 <= 90"),
        ({"maximum_megabytes": 90}, {"size": 90_000_001}, "hold", "bytes of the model directory 90.000 > 90"),
        ({"maximum_megabytes": 90}, {}, "hold", "size: not known"),
        ({"maximum_latency_ratio": 1.2}, {"latency_ratio": 1.1}, "promote", "of the champion's 1.100 <= 1.2"),
        ({"maximum_latency_ratio": 1.2}, {"latency_ratio": 1.3}, "hold", "of the champion's 1.300 > 1.2"),
        ({"maximum_latency_ratio": 1.2}, {"latency_ratio": float("nan")}, "hold", "of the champion's nan > 1.2"),
        ({"maximum_latency_ratio": 1.2}, {"faults": {"latency_ratio": "gone"}}, "hold", "latency ratio: gone"),
        ({"proofs": ["parity"]}, {"proofs": {"parity": "max |difference| 0"}}, "promote", "proved parity: max"),
        ({"proofs": ["parity"]}, {"proofs": {"content": "all"}}, "hold", "no proof of parity: it was not made"),
        ({"proofs": ["parity"]}, {"proofs": {"parity": "not judged: no words"}}, "hold", "parity: not judged: no"),
        ({"proofs": ["parity"]}, {"proofs": None, "faults": {"proofs": "gone"}}, "hold", "proofs: gone"),
        ({}, {"proofs": None, "faults": {"proofs": "gone"}}, "hold", "proofs: gone"),
        ({}, {"proofs": {}}, "hold", "the conversion has proven nothing"),
        ({"judgements": 3}, {"judgements": 3}, "promote", "3 candidates judged on these test rows, at most 3"),
        ({"judgements": 3}, {"judgements": 4}, "hold", "with a chance of 9.63 %; take fresh test rows: "),
    ],
)  # fmt: skip
def test_each_condition_tells_its_numbers_and_what_is_not_known_holds(conditions, known, outcome, told):
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(candidate, champion, must_beat=(), conditions=conditions, **known)
    assert found.outcome == outcome
    assert [check for check in found.checks if told in check.sentence and check.outcome == outcome]


def test_the_first_version_needs_no_champion_to_be_as_fast_or_as_good_as():
    candidate, rival = _pair(wins=30, losses=5)
    conditions = {"maximum_latency_ratio": 1.2, "not_worse": {"log_loss": 0.0}, "margin": 0.1}
    found = _gate(candidate, baselines={"rival": rival}, conditions=conditions, slices=None)
    assert found.outcome == "promote"


def test_worse_in_one_and_unknown_in_another_rejects():
    candidate, champion = _pair(wins=5, losses=30)
    found = _gate(candidate, champion, must_beat=(), conditions={"maximum_megabytes": 1})
    assert found.outcome == "reject"
    assert [reason.split(" on ")[0] for reason in found.reasons] == ["accuracy 0.565 < champion 0.783"]


def test_other_rows_are_no_comparison():
    candidate, rival = _pair(wins=3, losses=5)
    with pytest.raises(ValueError, match="rival was evaluated on other test rows"):
        compare(candidate, replace(rival, ids=rival.ids[::-1]), confidence=0.95, resamples=100, seed=1)


def test_models_of_equal_quality_are_promoted_no_more_often_than_alpha_allows():
    generator, rounds = np.random.default_rng(11), 600
    promoted = 0
    for _ in range(rounds):
        ours, theirs = generator.random((2, 300)) < 0.75
        found = _gate(_answers(ours), _answers(theirs), must_beat=())
        promoted += found.outcome == "promote"
    assert promoted <= binom.ppf(0.9999, rounds, 0.05 / 2)  # one side of a two-sided test


def test_the_detectable_difference_is_found_four_times_out_of_five():
    rows, discordant = 2400, 480
    difference = detectable(rows, discordant, alpha=0.05)
    share = discordant / rows
    shares = [(share + difference) / 2, (share - difference) / 2, 1 - share]
    counts = np.random.default_rng(5).multinomial(rows, shares, size=1000)
    found = sum(mcnemar(int(w), int(losses)) <= 0.05 and w > losses for w, losses, _ in counts)
    assert 0.74 < found / 1000 < 0.86
    assert difference == pytest.approx(0.0255, abs=0.0005)


def test_the_verdict_is_light():
    heavy = "torch", "sklearn", "pandas", "matplotlib", "evaluate"
    code = f"import sys, {verdict.__name__}; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[3]
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_groups_that_fall_alike_open_the_gate_no_more_often_than_single_rows():
    """Of equal models 2.5 % would be promoted at most; where every row counted for itself, a fifth would."""
    generator, size, pairs = np.random.default_rng(0), 5, 300
    groups = np.repeat(np.arange(100), size)
    cases = generator.choice(4, size=(pairs, 100), p=[0.05, 0.05, 0.8, 0.1])[:, groups]
    found = [
        _gate(
            _answers((case == 0) | (case == 2)),
            _answers((case == 1) | (case == 2)),
            must_beat=(),
            groups=groups,
        )
        for case in cases
    ]
    promoted = sum(one.outcome == "promote" for one in found)
    assert 0 < promoted <= binom.ppf(0.999, pairs, 0.025)
    assert "rows in 100 groups, paired" in _check(found[0], "champion").sentence


def test_copies_of_few_rows_decide_nothing():
    ours, theirs, groups = _answers([1] * 20), _answers([0] * 20), np.repeat(np.arange(5), 4)
    assert _gate(ours, theirs, must_beat=()).outcome == "promote"
    found = _gate(ours, theirs, must_beat=(), groups=groups)
    assert found.outcome == "hold"
    assert "20 test rows in 5 groups decide nothing at 0.05" in found.reasons[-1]


def test_what_must_not_be_worse_is_bounded_over_groups():
    generator = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 10)
    ours, theirs = generator.integers(0, 2, (2, 60))[:, groups]
    conditions = {"not_worse": {"macro_f1": 0.01}, "slices": {"minimum": 30, "margin": 0.01}}
    slices = {"most": groups < 40, "few": groups < 20}

    def bounds(**more):
        found = _gate(
            _answers(ours), _answers(theirs), must_beat=(), conditions=conditions, slices=slices, **more
        )
        parts = {part.name: part for part in _check(found, "slices").parts}
        figures = _check(found, "not worse in macro_f1").figures, parts["most"].figures
        return [one["high"] - one["low"] for one in figures], parts["few"]

    (metric, part), few = bounds(groups=groups)
    (metric_of_rows, part_of_rows), _ = bounds()
    assert metric > 2 * metric_of_rows
    assert part > 2 * part_of_rows
    assert few.sentence == "insufficient evidence: 20 of at least 30 groups of rows"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"groups": np.zeros(3, dtype=np.int64)}, "3 test rows have a group, of 115"),
        ({"faults": {"groups": "preparation is gone"}}, "preparation is gone"),
    ],
)
def test_groups_that_are_not_known_hold(more, reason):
    candidate, champion = _pair(wins=30, losses=5)
    found = _gate(candidate, champion, must_beat=(), **more)
    assert (found.outcome, found.reasons) == ("hold", (reason,))
