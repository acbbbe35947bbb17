"""Losses against their definitions, and updates that do not depend on how a batch is cut up."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from tasks.errors import TrainingError
from tasks.params import SELECTED
from tasks.training import loop, objectives, updates
from tasks.training.loop import Pace, Work
from tasks.training.objectives import NOTHING, OBJECTIVES, Settings

ROWS, WIDTH, CLASSES = 24, 7, 3
LENGTHS = [1 + row % 4 for row in range(ROWS)]  # positions read of each row, where these are several
OWNER = torch.repeat_interleave(torch.arange(ROWS), torch.tensor(LENGTHS))  # row of each position
BEGINS = torch.tensor([place for length in LENGTHS for place in range(length)]) == 0
CLASS = torch.arange(ROWS) ** 2 % CLASSES
SPANS = torch.stack([BEGINS.roll(-1), BEGINS.roll(-1), BEGINS], dim=1).long()  # each row's last token
TARGETS = {
    "label": CLASS,
    "pair": CLASS,
    "labels": (torch.arange(ROWS)[:, None] + torch.arange(CLASSES)) % 2,
    "score": torch.linspace(-1, 2, ROWS),
    "answer": SPANS,
    **dict.fromkeys(
        ("tags", "text", "completion", "chat", "translation", "prefix-remainder"),
        torch.arange(len(OWNER)) ** 2 % CLASSES,
    ),
}
VARIANTS = {
    "plain": Settings(),
    "weights": Settings(weights=torch.tensor([0.2, 1.0, 3.0])),
    "smooth": Settings(smoothing=0.1),
    "focal": Settings(weights=torch.tensor([0.2, 1.0, 3.0]), focus=2.0),
}


def test_every_objective_is_tested():
    assert TARGETS.keys() == OBJECTIVES.keys()


def _positions(kind, rows):
    if len(TARGETS[kind]) == ROWS:
        return torch.as_tensor(rows)
    return torch.cat([torch.nonzero(row == OWNER)[:, 0] for row in rows])


def _work(kind, settings, accumulation, forward):
    targets = lambda rows: TARGETS[kind][_positions(kind, rows)]  # noqa: E731
    return Work(forward, targets, objectives.find(kind), settings, "row {}".format, accumulation)


def _trained(kind, settings, accumulation, *, spoil=None, beside=None):
    """Weights after three steps on batches of eight, and the losses told."""
    torch.manual_seed(0)
    inputs = torch.randn(len(TARGETS[kind]), WIDTH)
    model = nn.Linear(WIDTH, 2 if kind == "answer" else CLASSES)
    forward = lambda rows: model(inputs[_positions(kind, rows)])  # noqa: E731
    work = _work(kind, settings, accumulation, spoil(forward) if spoil else forward)
    work = replace(work, beside=beside(model)) if beside else work
    adam = updates.optimizer([updates.Group("head", dict(model.named_parameters()), 0.1, 0.0)])
    batches = [list(range(start, start + 8)) for start in (0, 8, 16)]
    steps = list(loop.run_phase("head", work, batches, adam, Pace("constant", 0, 1.0), start=0, stop=3))
    return model.weight.detach(), [step.loss for step in steps]


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_the_update_is_the_same_for_any_accumulation(kind, variant, accumulation):
    """The stock classes' own loss, called with num_items_in_batch or without, gives 2x and 4x here."""
    weights, losses = _trained(kind, VARIANTS[variant], 1)
    again, told = _trained(kind, VARIANTS[variant], accumulation)
    torch.testing.assert_close(again, weights, rtol=0, atol=1e-6)
    assert told == pytest.approx(losses, abs=1e-6)


@pytest.mark.parametrize("kind", ["label", "tags", "score"])
@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_what_is_minimised_beside_it_counts_once_whatever_the_parts(kind, accumulation):
    decay = lambda model: lambda rows: 0.3 * model.weight.square().sum()  # noqa: E731
    weights, losses = _trained(kind, VARIANTS["weights"], 1, beside=decay)
    again, told = _trained(kind, VARIANTS["weights"], accumulation, beside=decay)
    torch.testing.assert_close(again, weights, rtol=0, atol=1e-6)
    assert told == pytest.approx(losses, abs=1e-6)
    plain, first = _trained(kind, VARIANTS["weights"], 1)
    assert not torch.allclose(plain, weights, atol=1e-3)
    assert first[0] == pytest.approx(losses[0])  # told is the objective's


def test_the_share_of_what_is_beside_it_is_that_of_the_batch():
    """One step down `0.3 |w|²` alone: as without an objective."""
    nothing = lambda forward: lambda rows: 0.0 * forward(rows)  # noqa: E731
    gradient, kept = [], {}

    def decay(model):
        kept["before"] = model.weight.detach().clone()
        model.weight.register_hook(gradient.append)
        return lambda rows: 0.3 * model.weight.square().sum()

    _trained("label", Settings(), 1, spoil=nothing, beside=decay)
    torch.testing.assert_close(gradient[0], 0.6 * kept["before"])


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_a_batch_that_does_not_fit_gives_the_same_update_in_more_parts(kind, caplog):
    """At most three rows fit; more raise what torch raises without memory."""
    sizes = []

    def small(forward):
        def limited(rows):
            sizes.append(len(rows))
            if len(rows) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return forward(rows)

        return limited

    weights, _ = _trained(kind, Settings(), 1)
    again, _ = _trained(kind, Settings(), 1, spoil=small)
    torch.testing.assert_close(again, weights, rtol=0, atol=1e-6)
    assert sizes[:3] == [8, 4, 2]
    assert sizes[3:] == [2] * 11  # found out once, for the whole phase
    assert "out of memory; batches are computed in 4 parts" in caplog.text


def test_dropout_is_drawn_again_alike_after_a_batch_did_not_fit():
    """The parts' masks are those of a run that was cut up from the beginning."""

    def dropping(failures):
        def wrap(forward):
            def limited(rows):
                if len(rows) > 4 and failures:
                    torch.rand(5)
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return functional.dropout(forward(rows), 0.5)

            return limited

        return wrap

    torch.manual_seed(0)
    weights, _ = _trained("label", Settings(), 2, spoil=dropping(failures=False))
    again, _ = _trained("label", Settings(), 1, spoil=dropping(failures=True))
    assert torch.equal(again, weights)


def test_a_single_row_that_does_not_fit_is_an_error_with_a_remedy():
    def never(forward):
        def limited(rows):
            raise torch.OutOfMemoryError("CUDA out of memory.")

        return limited

    with pytest.raises(TrainingError, match=r"a single row does not fit the memory: shorten rows \(encoding"):
        _trained("label", Settings(), 1, spoil=never)


def test_any_other_failure_is_passed_on():
    def breaks(forward):
        def limited(rows):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

        return limited

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        _trained("label", Settings(), 1, spoil=breaks)


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.1, 0.3], [-3.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, 1])


def _mean(kind, logits, targets, settings):
    objective = objectives.find(kind)
    return (objective.loss(logits, targets, settings) / objective.weight(targets, settings)).item()


@pytest.mark.parametrize("variant", ["plain", "weights"])
def test_classification_is_torchs_mean_cross_entropy(variant):
    settings = VARIANTS[variant]
    expected = functional.cross_entropy(LOGITS, LABELS, weight=settings.weights).item()
    assert _mean("label", LOGITS, LABELS, settings) == pytest.approx(expected, abs=1e-6)


def test_the_focal_loss_is_its_formula():
    likely = LOGITS.softmax(dim=-1)[torch.arange(3), LABELS]
    expected = (-((1 - likely) ** 2) * likely.log()).mean().item()
    assert _mean("label", LOGITS, LABELS, Settings(focus=2.0)) == pytest.approx(expected, abs=1e-6)


def test_targets_that_count_for_nothing_change_nothing():
    logits = torch.cat([LOGITS, torch.tensor([[9.0, -9.0, 0.0]])])
    targets = torch.cat([LABELS, torch.tensor([NOTHING])])
    for settings in VARIANTS.values():
        assert _mean("label", logits, targets, settings) == pytest.approx(
            _mean("label", LOGITS, LABELS, settings), abs=1e-6
        )


def test_balanced_weights_give_every_class_the_same_say():
    labels = torch.tensor([0] * 6 + [1] * 2 + [3] * 4)
    weights = objectives.balanced(labels, 4)
    assert weights.tolist() == pytest.approx([0.5, 1.5, 1.0, 0.75])
    sums = [float(weights[labels[labels == label]].sum()) for label in (0, 1, 3)]
    assert sums == pytest.approx([3.0, 3.0, 3.0])


def _figures(kind, *batches):
    objective = objectives.find(kind)
    return objective.figures(torch.stack([objective.sums(*batch) for batch in batches]).sum(dim=0))


def test_figures_of_each_kind():
    assert _figures("label", (LOGITS, LABELS)) == {
        "accuracy": pytest.approx(2 / 3),
        "loss": pytest.approx(_mean("label", LOGITS, LABELS, Settings())),
    }
    said = _figures("labels", (torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([[1, 0], [0, 1]])))
    assert (said["accuracy"], said["micro_f1"]) == (0.5, pytest.approx(0.8))
    guessed = _figures("score", (torch.tensor([[1.0], [3.0]]), torch.tensor([1.0, 2.0])))
    assert (guessed["loss"], guessed["r2"]) == (pytest.approx(0.5), pytest.approx(-1.0))
    assert math.isfinite(_figures("score", (torch.ones(2, 1), torch.ones(2)))["r2"])
    told = _figures("text", (torch.zeros(5, 8), torch.arange(5)))
    assert told["perplexity"] == pytest.approx(8.0)


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_figures_are_the_same_for_any_batches(kind):
    torch.manual_seed(1)
    logits = torch.randn(len(TARGETS[kind]), 2 if kind == "answer" else CLASSES)
    several = [
        (logits[_positions(kind, rows)], TARGETS[kind][_positions(kind, rows)])
        for rows in (range(5), range(5, 6), range(6, ROWS))
    ]
    assert _figures(kind, *several) == pytest.approx(_figures(kind, (logits, TARGETS[kind])))


@pytest.mark.parametrize("kind", sorted(OBJECTIVES))
def test_the_figure_that_selects_is_one_of_those_told(kind):
    objective = objectives.find(kind)
    logits = torch.zeros(len(TARGETS[kind]), 2 if kind == "answer" else CLASSES)
    assert _figures(kind, (logits, TARGETS[kind])).keys() == set(objective.names)
    assert objective.selected("auto") == SELECTED[kind]
    assert SELECTED[kind] in objective.names
    with pytest.raises(TrainingError, match=r"no figure 'bleu' of these rows"):
        objective.selected("bleu")


def test_a_span_is_told_among_the_tokens_of_its_own_row():
    """Against torch's cross-entropy over each row's tokens by itself."""
    torch.manual_seed(1)
    logits = torch.randn(len(OWNER), 2)
    expected = 0.0
    for row in range(ROWS):
        own, told = logits[row == OWNER], SPANS[row == OWNER]
        for side in (0, 1):
            expected += functional.cross_entropy(own[:, side], told[:, side].argmax()).item() / 2 / ROWS
    assert _mean("answer", logits, SPANS, Settings()) == pytest.approx(expected, abs=1e-6)
    right = torch.where(SPANS[:, :2] > 0, 9.0, -9.0)
    assert _figures("answer", (right, SPANS))["accuracy"] == 1.0
    assert _figures("answer", (-right, SPANS))["accuracy"] == pytest.approx(LENGTHS.count(1) / ROWS)


def test_balanced_weights_of_labels_say_how_many_more_rows_are_without():
    targets = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    assert objectives.balanced_labels(targets, 3).tolist() == pytest.approx([3.0, 1.0, 1 / 3])


def test_a_kind_without_an_objective_is_refused_with_those_that_have_one():
    with pytest.raises(TrainingError, match=r"'rating' .* kinds that can: label, pair, labels, score, tags"):
        objectives.find("rating")
