import pytest

from tasks.weights import report


def row(action, parameters, target="model.weight", source="weight", rule="weight -> model.weight [keep]"):
    return {
        "action": action, "target": target, "source": source, "rule": rule, "shape": [parameters],
        "dtype": "F32", "parameters": parameters, "reason": "",
    }  # fmt: skip


def facts(rows, **fields):
    known = {
        "reference": "package:a==1/model", "source": "sha256:00", "licence": "MIT", "family": "bert",
        "architecture": "BertForSequenceClassification", "dtype": "F32", "labels": ("a", "b"), "proofs": {},
    }  # fmt: skip
    return report.Facts(**{**known, **fields}, rows=rows)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "0 %"), (0, 9, "0 %"), (9, 9, "100 %"), (1, 10**9, "0.001 %"), (10**9 - 1, 10**9, "99.999 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(part, whole, text):
    assert report.percent(part, whole) == text


def test_the_headline_counts_what_came_along():
    rows = [row("renamed", 700), row("copied", 200), row("initialised", 100), row("dropped", 5)]
    assert report.headline(rows) == (
        "90.000 % of the model's 1,000 parameters come from the checkpoint; 100 are new; unused tensors: 1."
    )


def test_rules_are_counted_once_each():
    rows = [row("renamed", 7), row("renamed", 5), row("initialised", 3, rule="(none) -> head [normal]")]
    assert report.applied(rows) == [
        report.Applied("weight -> model.weight [keep]", "renamed", 2, 12),
        report.Applied("(none) -> head [normal]", "initialised", 1, 3),
    ]


def test_names_from_outside_stay_text():
    page = report.render(facts([row("copied", 1)], labels=("<script>alert(1)</script>", "b")))
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_page_is_the_same_for_the_same_facts():
    rows = [row("copied", 1), row("dropped", 2, target=None)]
    assert report.render(facts(rows)) == report.render(facts(rows))
