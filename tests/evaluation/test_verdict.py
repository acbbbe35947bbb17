import sys
from dataclasses import replace
from pathlib import Path
from subprocess import run

import numpy as np
import pytest
from scipy.stats import binom

from tasks.evaluation import verdict
from tasks.evaluation.pairing import detectable, mcnemar
from tasks.evaluation.predictions import Predictions
from tasks.evaluation.verdict import compare, gate


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


def _gate(candidate, champion=None, baselines=None, must_beat=("rival",), **more):
    return gate(candidate, champion, baselines or {}, alpha=0.05, must_beat=must_beat, resamples=200, **more)


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
    assert found.figures["rival.wins"] == 30


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


def test_without_anything_to_beat_the_first_version_says_so():
    found = _gate(_answers([1, 0]), must_beat=())
    assert (found.outcome, found.reasons) == (
        "promote",
        ("first version, and must_beat names no baseline to beat",),
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


def test_other_rows_are_no_comparison():
    candidate, rival = _pair(wins=3, losses=5)
    with pytest.raises(ValueError, match="rival was evaluated on other test rows"):
        compare(candidate, replace(rival, ids=rival.ids[::-1]), confidence=0.95, resamples=100, seed=1)


def test_models_of_equal_quality_are_promoted_no_more_often_than_alpha_allows():
    generator, rounds = np.random.default_rng(11), 600
    promoted = 0
    for _ in range(rounds):
        ours, theirs = generator.random((2, 300)) < 0.75
        found = gate(_answers(ours), _answers(theirs), {}, alpha=0.05, must_beat=(), resamples=10)
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
    root = Path(__file__).parents[2]
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"
