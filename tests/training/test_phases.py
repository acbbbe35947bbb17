"""The schedule on a tiny real BERT: what learns, what stays, and what an interruption changes (nothing)."""

from collections.abc import Mapping

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tasks.errors import TrainingError
from tasks.model import floors
from tasks.training import loop, phases
from tasks.training.loop import Step
from tasks.training.order import epoch_order
from tasks.training.table import NewRows

ROWS, TOKENS = 40, 6


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 61, (ROWS, TOKENS), generator=generator)
    return ids, ids.sum(dim=1) % 3


def _planned(model, ids, name, depth, *, rate=1e-2, epochs=2, new=None, whole_forward=False):
    stack = floors.learning(floors.floors(model), depth)
    mask = torch.ones_like(ids)

    def whole():
        return lambda rows: floors.head_logits(model, floors.first_token(model, ids[rows], mask[rows]))

    def cached():
        with torch.no_grad():
            first = floors.first_token(model, ids, mask)
        return lambda rows: floors.head_logits(model, first[list(rows)])

    order = [
        b for e in range(epochs) for b in epoch_order([TOKENS] * ROWS, batch_size=8, seed=(len(name), e))
    ]
    return phases.Planned(
        name, [(f.name, f.parameters, f.modules) for f in stack], cached if depth == 0 and not whole_forward else whole,
        order, rate, 0.9, 0.1, new,
    )  # fmt: skip


SETTINGS = phases.Settings(seed=1, weight_decay=0.01, maximum_norm=1.0, save_every=3)


def _train(model, data, tmp_path, *, stop_after=None, schedule=(("head", 0), ("upper", 2), ("whole", "all"))):
    ids, labels = data
    planned = [_planned(model, ids, name, depth) for name, depth in schedule]
    events = phases.fine_tune(
        model, labels, planned, SETTINGS, point=tmp_path / "point", finished=lambda phase: {"loss": 0.0}
    )
    seen = []
    for event in events:
        seen.append(event)
        if stop_after is not None and sum(isinstance(e, Step) for e in seen) == stop_after:
            events.close()
            break
    return seen


def _weights(model) -> Mapping[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_a_phase_changes_what_learns_and_nothing_else(tiny_bert, data, tmp_path):
    model = tiny_bert()
    before = _weights(model)
    _train(model, data, tmp_path, schedule=(("upper", 2),))
    learned = {n for floor in floors.learning(floors.floors(model), 2) for n in floor.parameters}
    for name, value in _weights(model).items():
        same = torch.equal(value, before[name])
        # a key bias shifts all scores of a query alike, so softmax leaves it without a gradient
        assert same != (name in learned) or name.endswith("self.key.bias"), name


def test_unfreezing_really_unfreezes(tiny_bert, data, tmp_path):
    """In the stock Trainer a callback that unfreezes is a silent no-op: body change exactly 0.0."""
    model = tiny_bert()
    before = _weights(model)
    _train(model, data, tmp_path, schedule=(("head", 0), ("whole", "all")))
    moved = (
        model.bert.encoder.layer[0].output.dense.weight - before["bert.encoder.layer.0.output.dense.weight"]
    )
    assert moved.abs().max() > 1e-4


def test_frozen_layers_are_without_dropout_and_learning_ones_with(tiny_bert):
    model = tiny_bert()
    stack = floors.learning(floors.floors(model), 1)
    loop.freeze(
        model, [p for f in stack for p in f.parameters.values()], [m for f in stack for m in f.modules]
    )
    assert [layer.training for layer in model.bert.encoder.layer] == [False, False, False, True]
    assert not model.bert.embeddings.dropout.training


def test_cached_features_train_the_head_exactly_as_recomputed_ones(tiny_bert, data, tmp_path):
    """Frozen layers computed once, not once an epoch: equal to rounding (the frozen batches differ in size)."""
    ids, labels = data
    results = []
    for way in ("cached", "recomputed"):
        model = tiny_bert()
        plan = _planned(model, ids, "head", 0)
        if way == "recomputed":
            mask = torch.ones_like(ids)

            def again(model=model, mask=mask):
                def forward(rows):
                    with torch.no_grad():
                        first = floors.first_token(model, ids[rows], mask[rows])
                    return floors.head_logits(model, first)

                return forward

            plan = phases.Planned(plan.name, plan.stack, again, plan.batches, plan.learning_rate, 0.9, 0.1)
        finish = {"point": tmp_path / way, "finished": lambda phase: {}}
        list(phases.fine_tune(model, labels, [plan], SETTINGS, **finish))
        results.append(_weights(model))
    assert all(torch.allclose(results[0][n], results[1][n], atol=1e-6) for n in results[0])


@pytest.fixture(scope="module")
def whole(tiny_bert, data, tmp_path_factory):
    """What a training tells that nothing interrupts, and its weights."""
    model = tiny_bert()
    return _train(model, data, tmp_path_factory.mktemp("whole")), _weights(model)


@pytest.mark.parametrize("stop_after", [1, 3, 8, 10, 11, 19, 20, 27])
def test_an_interrupted_training_ends_with_the_same_weights(tiny_bert, data, tmp_path, whole, stop_after):
    undisturbed, weights = whole
    broken, resumed = tiny_bert(), tiny_bert()
    _train(broken, data, tmp_path / "b", stop_after=stop_after)
    torch.manual_seed(999)  # a new process starts with another random state
    taken = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    again = _train(resumed, data, tmp_path / "b")
    hook.remove()
    # `stop_after` counts steps told; the point behind the last one told is at most `save_every` steps old
    assert 30 - stop_after <= len(taken) <= 30 - stop_after + SETTINGS.save_every
    for name, value in _weights(resumed).items():
        assert torch.equal(value, weights[name]), name
    key = lambda e: (e.phase, e.number) if isinstance(e, Step) else (e["name"], 10**6)  # noqa: E731
    order = ["head", "upper", "whole"]
    assert sorted(map(key, undisturbed), key=lambda k: (order.index(k[0]), k[1])) == sorted(
        map(key, again), key=lambda k: (order.index(k[0]), k[1])
    )


def _with_rows(model, ids, name, depth, *, whole_forward=True):
    rows = NewRows(*floors.word_table(model), torch.tensor([7, 11]))
    return _planned(model, ids, name, depth, new=rows, whole_forward=whole_forward)


def _train_rows(model, data, tmp_path, *, stop_after=None, **options):
    ids, labels = data
    planned = [_with_rows(model, ids, "head", 0, **options), _with_rows(model, ids, "upper", 2, **options)]
    finish = {"point": tmp_path / "point", "finished": lambda phase: {}}
    events = phases.fine_tune(model, labels, planned, SETTINGS, **finish)
    for number, _ in enumerate(events, start=1):
        if number == stop_after:
            events.close()
            break


def test_rows_that_learn_alone_leave_the_table_as_it_is_and_no_hook_behind(tiny_bert, data, tmp_path):
    model = tiny_bert()
    name, table = floors.word_table(model)
    before = table.detach().clone()
    _train_rows(model, data, tmp_path)
    changed = (table.detach() != before).any(dim=1).nonzero().flatten().tolist()
    assert (name, changed) == ("bert.embeddings.word_embeddings.weight", [7, 11])
    model.requires_grad_(True)
    ids, _ = data
    model(ids).logits.sum().backward()
    assert (table.grad != 0).any(dim=1).sum() > 2


@pytest.mark.parametrize("stop_after", [2, 4, 10, 12, 17])
def test_new_rows_survive_an_interruption_to_the_bit(tiny_bert, data, tmp_path, stop_after):
    undisturbed, broken, resumed = tiny_bert(), tiny_bert(), tiny_bert()
    _train_rows(undisturbed, data, tmp_path / "a")
    _train_rows(broken, data, tmp_path / "b", stop_after=stop_after)
    torch.manual_seed(999)
    _train_rows(resumed, data, tmp_path / "b")
    expected = _weights(undisturbed)
    for name, value in _weights(resumed).items():
        assert torch.equal(value, expected[name]), name


def test_features_that_were_computed_once_are_refused_while_new_rows_learn(tiny_bert, data, tmp_path):
    with pytest.raises(TrainingError, match=r"phase head: no gradient reaches the new rows of bert\.embed"):
        _train_rows(tiny_bert(), data, tmp_path, whole_forward=False)


def test_a_loss_that_is_no_number_names_its_rows(tiny_bert, data, tmp_path):
    model = tiny_bert()
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(TrainingError, match=r"phase head, step 1: the loss is nan on rows \["):
        _train(model, data, tmp_path)
