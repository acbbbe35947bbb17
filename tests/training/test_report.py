"""The page's sentences on hand-made trainings of a model with six layers."""

import re

import pytest

from tasks.training import report
from tasks.training.events import Change, Finished, Measure
from tasks.training.loop import Step
from tasks.training.phases import NEW
from tasks.training.report import Facts, Plan

FLOORS = ("embeddings", *(f"layer {n}" for n in range(6)), "head")
UPPER, HEAD = FLOORS[4:], FLOORS[-1:]
RISING = dict(zip(FLOORS, (0.0, 0.01, 0.01, 0.02, 0.02, 0.04, 0.04, 3.0), strict=True))
FALLING = dict(zip(FLOORS, (0.0, 0.04, 0.04, 0.02, 0.02, 0.01, 0.01, 3.0), strict=True))


def _phase(name, learning, *, accuracy=(0.6, 0.7), moved=RISING, new=()):
    """Two epochs of one step each; the first epoch leaves half of `moved`."""
    best = 1 + (accuracy[1] > accuracy[0])
    told = []
    for number in (1, 2):
        told.append(Step(name, number, 1.0, 1e-3, 1.0, 8))
        told.append(Change(name, number, {floor: value * number / 2 for floor, value in moved.items()}))
        told.append(Measure(name, number, {"accuracy": accuracy[number - 1], "loss": 1.0}))
    figures = {"accuracy": max(accuracy), "loss": 1.0}
    return [*told, Finished(name, (*new, *learning), 1234, 2, best, figures)]


def _plan(whole=FLOORS, *, parts=(), decay=1.0, reused=None, only=None):
    return Plan(whole, parts, 1e-4, decay, reused, only)


def _facts(*phases, **changes):
    """phases: (events, plan)."""
    facts = {
        "told": [event for told, _ in phases for event in told],
        "floors": FLOORS,
        "plans": [plan for _, plan in phases],
        "select": "accuracy",
        "rows": {"train": 4800, "validation": 800},
        "settings": {"Seed": "17"},
        "sources": {"Base checkpoint": "Bert <b>"},
    }
    return Facts(**(facts | changes))


ONE = _facts((_phase("whole", FLOORS), _plan()))
GRADUAL = _facts(
    (_phase("head", HEAD), _plan(HEAD, reused=6)),
    (_phase("upper", UPPER), _plan(UPPER, reused=3)),
    (_phase("whole", FLOORS), _plan(decay=0.9)),
)


def test_early_layers_that_moved_less_are_said_to():
    assert report.comparison(ONE) == (
        "In the weights kept of phase whole the lowest third of the layers (layers 0 and 1) has moved "
        "4.0 times less than the highest (layers 4 and 5): 1 % of its own length on average against 4 %."
    )


def test_early_layers_that_moved_more_are_said_to():
    found = report.comparison(_facts((_phase("whole", FLOORS, moved=FALLING), _plan())))
    assert "has moved 4.0 times more than the highest (layers 4 and 5): 4 % of its own" in found


def test_layers_that_moved_alike_are_said_to():
    level = dict.fromkeys(FLOORS, 0.02)
    found = report.comparison(_facts((_phase("whole", FLOORS, moved=level), _plan())))
    assert "has moved about as much as the highest" in found


def test_layers_that_did_not_move_at_all_have_no_ratio():
    still = RISING | {"layer 0": 0.0, "layer 1": 0.0}
    assert "has moved not at all, unlike the highest" in report.comparison(
        _facts((_phase("whole", FLOORS, moved=still), _plan()))
    )


def test_the_comparison_is_of_the_weights_that_were_kept():
    early = _facts((_phase("whole", FLOORS, accuracy=(0.8, 0.7)), _plan()))
    assert "0.5 % of its own length on average against 2 %" in report.comparison(early)


def test_it_is_the_last_phase_in_which_all_layers_learned_that_counts():
    again = _facts(
        (_phase("first", FLOORS, moved=FALLING), _plan()),
        (_phase("second", FLOORS), _plan()),
        (_phase("head", HEAD), _plan(HEAD)),
    )
    assert "phase second the lowest third" in report.comparison(again)


@pytest.mark.parametrize("parts", [(), ("biases",)])
def test_without_such_a_phase_nothing_is_concluded(parts):
    """Biases of all layers that learn are no layers that learn."""
    upper = _facts((_phase("upper", FLOORS if parts else UPPER), _plan(UPPER, parts=parts)))
    assert report.comparison(upper).startswith("No phase let all layers learn")
    assert report.fairness(upper) == []


def test_adapters_say_nothing_about_layers():
    adapted = _facts((_phase("whole", FLOORS[1:]), _plan(FLOORS[1:])), adapter="lora")
    assert "lora adapters learned" in report.comparison(adapted)
    assert report.fairness(adapted) == []


def test_a_model_of_one_layer_is_not_compared_with_itself():
    moved = {"embeddings": 0.1, "layer 0": 0.2, "head": 1.0}
    single = _facts((_phase("whole", tuple(moved), moved=moved), _plan(tuple(moved))), floors=tuple(moved))
    assert report.comparison(single).startswith("The model has a single layer")


def test_one_rate_for_all_layers_in_the_same_steps_is_fair():
    assert "is fair" in report.fairness(ONE)[0]
    headed = _facts((_phase("head", HEAD), _plan(HEAD, decay=0.5)), (_phase("whole", FLOORS), _plan()))
    assert "is fair" in report.fairness(headed)[0], "a phase of the head alone moves no layer"


def test_lower_rates_below_and_more_steps_above_are_no_fair_comparison():
    assert report.fairness(GRADUAL) == [
        "That is no fair comparison; only a run in which all layers learn together at one rate can say.",
        "The upper layers also learned in phase upper, the lower ones not or only in part.",
        "The lower layers had lower rates than the upper ones in phase whole (layer_decay).",
    ]


def test_what_comes_after_the_compared_phase_does_not_make_it_unfair():
    found = _facts((_phase("whole", FLOORS), _plan()), (_phase("upper", UPPER), _plan(UPPER, decay=0.5)))
    assert "is fair" in report.fairness(found)[0]


@pytest.mark.parametrize(
    ("floors", "words"),
    [
        (HEAD, "head"),
        (("layer 5", "head"), "layer 5 and head"),
        (("layer 4", "layer 5", "head"), "layers 4 and 5 and head"),
        (UPPER, "layers 3 to 5 and head"),
        (("embeddings", "layer 0"), "embeddings and layer 0"),
        ((), ""),
    ],
)
def test_floors_in_words(floors, words):
    assert report.named(floors) == words


@pytest.mark.parametrize(
    ("plan", "new", "words"),
    [
        (_plan(), False, "everything"),
        (_plan(HEAD, parts=("biases", "norms")), False, "head, biases below and norms below"),
        (_plan(HEAD, parts=("embeddings",)), False, "head and embeddings"),
        (_plan(UPPER), True, "layers 3 to 5, head and the rows of new tokens"),
    ],
)
def test_what_learned_in_words(plan, new, words):
    assert report.learned(ONE, plan, new=new) == words


def test_an_adapter_is_named_with_its_layers():
    adapted = _facts((_phase("whole", FLOORS[1:]), _plan(FLOORS[1:])), adapter="lora")
    assert report.learned(adapted, adapted.plans[0], new=False) == "head and lora adapters in layers 0 to 5"


def test_how_often_frozen_work_was_computed_is_told():
    page = report.render(GRADUAL)
    assert "embeddings and layers 0 to 5<small>what the head reads: computed once, used in 2 epochs" in page
    assert "layers 0 to 2<small>states that enter layer 3: computed once, used in 2 epochs" in page
    anew = report.render(_facts((_phase("upper", UPPER), _plan(UPPER))))
    assert "layers 0 to 2<small>computed once an epoch, 2 epochs" in anew


@pytest.mark.parametrize("changes", [{"parts": ("biases",)}, {"new": (NEW,)}])
def test_floors_that_learn_in_part_are_not_called_learning_nor_frozen(changes):
    learning = FLOORS if "parts" in changes else FLOORS[1:]
    told = _phase("part", learning, new=changes.get("new", ()))
    page = report.render(_facts((told, _plan(UPPER, parts=changes.get("parts", ())))))
    assert '<td class="words">no floor as a whole</td>' in page


def test_what_learns_in_layers_alone_is_told():
    page = report.render(_facts((_phase("part", FLOORS[1:-1]), _plan(FLOORS[1:-1], only="feed-forward"))))
    assert "the feed-forward networks of layers 0 to 5</td>" in page
    assert "embeddings, head and all else in these layers<small>" in page


def test_layers_of_which_a_part_learned_are_not_compared_as_whole_ones():
    facts = _facts((_phase("part", FLOORS[1:-1]), _plan(FLOORS[1:-1], only="feed-forward")))
    assert report.comparison(facts).startswith("No phase let all layers learn")


def test_the_headline_says_steps_rows_and_what_is_kept():
    assert report.headline(GRADUAL) == (
        "3 phases, 6 optimizer steps on 4,800 rows; the model that is kept has accuracy 0.700 and loss 1.000 "
        "on 800 validation rows."
    )


def test_an_earlier_phase_that_was_better_is_not_hidden():
    worse = _facts(
        (_phase("head", HEAD, accuracy=(0.5, 0.9)), _plan(HEAD)), (_phase("whole", FLOORS), _plan())
    )
    assert report.better(worse).startswith("Phase head ended with a better accuracy, 0.900;")
    assert report.better(GRADUAL) == ""


def test_by_loss_the_lower_figure_is_the_better():
    first, second = _phase("head", HEAD), _phase("whole", FLOORS)
    second[-1] = Finished("whole", FLOORS, 1, 2, 2, {"accuracy": 0.9, "loss": 1.5})
    found = _facts((first, _plan(HEAD)), (second, _plan()), select="loss")
    assert report.better(found).startswith("Phase head ended with a better loss, 1.000;")


def test_the_page_escapes_texts_needs_nothing_from_elsewhere_and_is_the_same_each_time():
    page = report.render(GRADUAL)
    assert "Bert &lt;b&gt;" in page
    assert page.count("<svg") == 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//|<script|<link|@import""", page)
    assert page == report.render(GRADUAL)


def test_padding_is_that_of_all_steps_of_the_phase():
    steps = [Step("a", n, 1.0, 1e-3, 1.0, 8, 1, tokens, 50) for n, tokens in ((1, 40), (2, 45))]
    assert report.padding(steps) == "15.0 % padding"
    assert report.padding([Step("a", 1, 1.0, 1e-3, 1.0, 8)]) == ""


FLOOR = {"cka": 0.9876, "cosine": 0.95}


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        ({}, []),
        ({"before": 3.0, "after": 3.25}, ["went from 3.000 to 3.250 nats a token, 0.250 worse"]),
        ({"before": 3.0, "after": 2.5}, ["went from 3.000 to 2.500 nats a token, 0.500 better"]),
    ],
)
def test_what_a_general_text_says_is_told_of_the_uppermost_floor(loss, told):
    drift = report.Drift({"layer 0": {"cka": 1.0, "cosine": 1.0}, "layer 5": FLOOR}, loss)
    page = report.render(_facts((_phase("whole", FLOORS), _plan()), drift=drift))
    assert "What leaves layer 5 has a linear CKA of 0.988" in page
    assert all(sentence in page for sentence in told)
    assert ("nats a token" in page) == bool(told)
    assert drift.figures() == {
        **{f"drift.loss.{when}": value for when, value in loss.items()},
        "drift.cka.layer 0": 1.0, "drift.cosine.layer 0": 1.0,
        "drift.cka.layer 5": 0.9876, "drift.cosine.layer 5": 0.95,
    }  # fmt: skip
