from itertools import product

import numpy as np
import pytest
from scipy import stats

from tasks.evaluation.gate.pairing import (
    compare_scores,
    detectable_mean,
    mean_resamples,
    permutation,
)


def test_a_permutation_gives_what_all_signs_give():
    differences = np.array([0.5, 1.5, -0.25, 2.0, 0.75, 1.0, -0.5, 0.0])
    signs = np.array(list(product((-1, 1), repeat=8)))
    exact = np.mean(np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9)
    assert permutation(differences, seed=1) == pytest.approx(exact, abs=0.01)
    assert permutation(-differences, seed=1) == permutation(differences, seed=1)


def test_a_permutation_agrees_with_the_t_test_where_that_holds():
    differences = np.random.default_rng(5).normal(0.15, 1, 200)
    assert permutation(differences, seed=1) == pytest.approx(
        stats.ttest_1samp(differences, 0).pvalue, abs=0.01
    )


def test_a_permutation_is_never_certain_and_nothing_differs_from_itself():
    assert permutation(np.ones(100), seed=1, flips=999) == 1 / 1000
    assert permutation(np.zeros(100), seed=1) == 1.0


def test_equal_scores_are_told_apart_no_more_often_than_alpha_allows():
    generator, rounds = np.random.default_rng(3), 400
    found = [permutation(generator.exponential(size=40) * generator.choice([-1, 1], 40), seed=n, flips=199)
             for n in range(rounds)]  # fmt: skip
    assert np.mean(np.array(found) <= 0.05) <= stats.binom.ppf(0.9999, rounds, 0.05) / rounds


def test_the_mean_interval_is_as_wide_as_the_normal_approximation_says():
    differences = np.random.default_rng(2).normal(0.3, 2, 900)
    low, high = np.quantile(mean_resamples(differences, resamples=2000, seed=1), [0.025, 0.975])
    assert low < differences.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * differences.std() / 30, rel=0.1)


def test_the_detectable_mean_is_found_four_times_out_of_five():
    generator = np.random.default_rng(8)
    wanted = detectable_mean(generator.normal(0, 1, 100_000)[:400], alpha=0.05)
    draws = generator.normal(wanted, 1, (1000, 400))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue <= 0.05
    assert 0.74 < found.mean() < 0.86


def test_scores_are_compared_row_by_row_and_always_the_same():
    generator = np.random.default_rng(4)
    ours, theirs = generator.normal(0.4, 1, 300), generator.normal(0, 1, 300)
    how = {"measure": "x", "right_or_wrong": False, "confidence": 0.95, "resamples": 500, "seed": 1}
    found = compare_scores(ours, theirs, **how)
    assert found == compare_scores(ours, theirs, **how)
    assert (found.wins, found.losses) == ((ours > theirs).sum(), (ours < theirs).sum())
    assert found.low < found.difference < found.high
    assert found.better(0.05)
    assert compare_scores(theirs, ours, **how).worse(0.05)


HOW = {"measure": "x", "confidence": 0.95, "resamples": 500, "seed": 1}


@pytest.mark.parametrize("right_or_wrong", [False, True])
def test_rows_that_are_groups_by_themselves_change_nothing(right_or_wrong):
    generator = np.random.default_rng(4)
    ours, theirs = generator.integers(0, 2, (2, 300)).astype(np.float64)
    plain = compare_scores(ours, theirs, right_or_wrong=right_or_wrong, **HOW)
    alone = generator.permutation(300)
    assert compare_scores(ours, theirs, right_or_wrong=right_or_wrong, groups=alone, **HOW) == plain
    assert plain.groups is None


@pytest.mark.parametrize("right_or_wrong", [False, True])
def test_copies_of_rows_tell_no_more_than_the_rows(right_or_wrong):
    generator = np.random.default_rng(4)
    single = generator.integers(0, 2, (2, 300)).astype(np.float64)
    plain = compare_scores(*single, right_or_wrong=right_or_wrong, **HOW)
    copies, groups = np.repeat(single, 5, axis=1), np.repeat(np.arange(300), 5)
    found = compare_scores(*copies, right_or_wrong=right_or_wrong, groups=groups, **HOW)
    assert (found.rows, found.groups, found.difference) == (1500, 300, pytest.approx(plain.difference))
    assert found.p_value == pytest.approx(plain.p_value, abs=0.02)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=0.02)
    assert found.detectable == pytest.approx(plain.detectable, rel=0.05)
