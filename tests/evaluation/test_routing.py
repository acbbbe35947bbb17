"""What a page and its tables tell of a mixture's experts."""

import numpy as np
import pytest

from tasks.evaluation import routing

APART = np.array([[3, 0]] * 8 + [[0, 3]] * 8)  # tokens of rows that each expert reads, (rows, experts)
ALIKE = np.array([[2, 1]] * 16)
DOMAINS = ["law"] * 8 + ["code"] * 8


def find(columns, chosen=1):
    return routing.find(np.stack([APART, ALIKE]), chosen, columns, seed=1)


def test_a_model_without_layers_of_experts_has_no_routes():
    assert routing.find(np.zeros((0, 16, 0), dtype=int), 0, {"domain": DOMAINS}, seed=1) is None


def test_loads_are_shares_of_the_tokens():
    assert find({}).load.tolist() == [[0.5, 0.5], [2 / 3, 1 / 3]]
    assert find({}, chosen=2).load.tolist() == [[1, 1], [4 / 3, 2 / 3]]


def test_what_divides_the_rows_is_told_beside_chance():
    routes = find({"domain": DOMAINS})
    (division,) = routes.divisions
    assert division.domains == ["code", "law"]
    assert [layer.p_value for layer in division.layers] == [1 / 1000, 1]
    assert division.told(0.05).startswith("In 1 of 2 layers experts and domain have more in common")
    assert "as chance alone gives in 0.1" in division.told(0.05)
    assert routes.values == {
        "least_load": pytest.approx(1 / 3), "most_load": pytest.approx(2 / 3), "domain.bits": pytest.approx(0.5),
    }  # fmt: skip


def test_lines_hold_every_token_that_was_read():
    lines = list(find({"domain": DOMAINS}).lines())
    assert lines[0] == ("", "", 0, 0, 24)
    assert ("domain", "law", 0, 0, 24) in lines
    assert ("domain", "code", 0, 0, 0) in lines
    for by in ("", "domain"):
        assert sum(line[-1] for line in lines if line[0] == by) == 2 * 16 * 3


def test_a_value_that_all_rows_have_divides_nothing():
    assert not find({"domain": ["law"] * 16}).divisions


def test_rare_values_stand_together_and_none_is_a_value():
    values = [f"domain {n}" for n in range(14)] + ["domain 5", None]
    (division,) = find({"domain": values}).divisions
    assert division.domains[-1] == "(another)"
    assert len(division.domains) == routing.DOMAINS + 1
    assert "(none)" in find({"domain": [None, *DOMAINS[1:]]}).divisions[0].domains
    assert all(layer.table.sum() == 48 for layer in division.layers)


def test_each_layer_has_a_picture_of_each_division():
    loads, routes = find({"domain": DOMAINS}).pictures()
    assert "each reads 50.0% of the tokens" in loads.caption
    assert routes.title == "Experts by domain"
    assert all(f">layer {number}<" in routes.svg for number in range(2))
    assert "100%" in routes.svg
