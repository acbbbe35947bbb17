"""What experts know of domains, against cases computed by hand."""

import math

import numpy as np
import pytest

from tasks.evaluation.figures.routing import information, routed


@pytest.mark.parametrize(
    ("table", "bits"),
    [
        ([[5, 0], [0, 5]], 1.0),  # the expert is the domain
        ([[4, 4], [2, 2]], 0.0),  # independent
        ([[2, 0, 0], [0, 2, 0], [0, 0, 2]], math.log2(3)),
        ([[3, 1], [1, 3]], 1 + 0.75 * math.log2(0.75) + 0.25 * math.log2(0.25)),  # 1 - H(1/4)
        ([[3, 0], [1, 0]], 0.0),  # an expert that reads nothing
    ],
)
def test_information_is_that_of_the_table(table, bits):
    assert information(np.array(table)) == pytest.approx(bits, abs=1e-12)


def test_experts_that_know_the_domain_are_told_from_chance():
    domains = np.repeat([0, 1], 10)
    know = routed(np.where(domains[:, None] == [0, 1], 4, 0), domains, seed=3)
    ignore = routed(np.full((20, 2), 2), domains, seed=3)
    assert know.bits == pytest.approx(1)
    assert know.p_value == 1 / 1000
    assert know.chance < 0.2
    assert know.table.tolist() == [[40, 0], [0, 40]]
    assert (ignore.bits, ignore.p_value) == (pytest.approx(0), 1)


def test_texts_that_keep_to_one_expert_are_no_evidence_by_their_tokens():
    """Four texts: a third of the ways to deal out two domains fit as well, however many tokens there are."""
    domains = np.array([0, 0, 1, 1])
    layer = routed(np.where(domains[:, None] == [0, 1], 500, 0), domains, seed=3)
    assert layer.p_value == pytest.approx(1 / 3, abs=0.05)
