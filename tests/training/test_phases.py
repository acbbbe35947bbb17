"""The schedule on a tiny real BERT: what learns, what stays, and what an interruption changes (nothing)."""

import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tasks.errors import TrainingError
from tasks.model import floors
from tasks.training import loop, objectives, phases, resume
from tasks.training.events import Change, Finished, Measure
from tasks.training.loop import Pace, Step, Work
from tasks.training.order import epoch_order
from tasks.training.ranks import Ranks
from tasks.training.table import NewRows

ROWS, TOKENS = 40, 6


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 61, (ROWS, TOKENS), generator=generator)
    return ids, ids.sum(dim=1) % 3


def _logits(model, ids):
    hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return floors.head_logits(model, hidden[:, 0])


def _planned(model, data, name, depth, *, rate=1e-2, epochs=2, new=None, whole_forward=False, **more):
    ids, labels = data
    objective = objectives.find("label")

    def work():
        if depth != 0 or whole_forward:
            return lambda rows: _logits(model, ids[rows])
        with torch.no_grad():
            hidden = model.base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return lambda rows: floors.head_logits(model, hidden[rows, 0])

    def measure():
        model.eval()
        with torch.no_grad():
            return objective.figures(objective.sums(_logits(model, ids), labels))

    orders = [epoch_order([TOKENS] * ROWS, batch_size=8, seed=(len(name), e)) for e in range(epochs)]
    names = [f"row {number}" for number in range(ROWS)]
    return phases.Planned(
        name=name,
        stack=_stack(floors.learning(floors.floors(model), depth)),
        work=lambda: Work(
            work(), lambda rows: labels[rows], objective, objectives.Settings(), names.__getitem__
        ),
        measure=more.pop("measure", measure),
        epochs=orders,
        learning_rate=rate,
        layer_decay=0.9,
        pace=Pace("linear", 0.1, 1.0),
        rows=new,
        **more,
    )


def _stack(stack):
    return [(floor.name, floor.parameters, floor.modules) for floor in stack]


SETTINGS = phases.Settings(seed=1, optimizer="adamw", weight_decay=0.01, save_every=3, select="loss")
SCHEDULE = (("head", 0), ("upper", 2), ("whole", "all"))


def _train(model, data, tmp_path, *, stop_after=None, schedule=SCHEDULE, settings=SETTINGS, planned=None):
    planned = planned or [_planned(model, data, name, depth) for name, depth in schedule]
    events = phases.fine_tune(
        model, _stack(floors.floors(model)), planned, settings, point=tmp_path / "point"
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


@pytest.fixture(scope="module")
def whole(tiny_bert, data, tmp_path_factory):
    """What a training tells that nothing interrupts, and its weights."""
    model = tiny_bert()
    return _train(model, data, tmp_path_factory.mktemp("whole")), _weights(model)


@pytest.mark.parametrize("stop_after", [1, 3, 5, 8, 10, 11, 19, 20, 27, 30])
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
    assert again == undisturbed


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_optimizer_goes_on_to_the_bit(tiny_bert, data, tmp_path, optimizer):
    settings = replace(SETTINGS, optimizer=optimizer)
    undisturbed, broken, resumed = tiny_bert(), tiny_bert(), tiny_bert()
    _train(undisturbed, data, tmp_path / "a", settings=settings)
    _train(broken, data, tmp_path / "b", stop_after=17, settings=settings)
    _train(resumed, data, tmp_path / "b", settings=settings)
    expected = _weights(undisturbed)
    assert all(torch.equal(value, expected[name]) for name, value in _weights(resumed).items())


def test_what_goes_on_learning_keeps_its_moments_and_what_begins_has_none(tiny_bert, data, tmp_path):
    counts, hook = _counts("classifier.weight")
    layer, other = _counts("bert.encoder.layer.3.output.dense.weight")
    _train(tiny_bert(), data, tmp_path, schedule=(("head", 0), ("upper", 2)))
    hook.remove()
    other.remove()
    assert list(zip(counts, layer, strict=True))[9:12] == [(10, None), (11, 1), (12, 2)]


def _with_figures(model, data, name, depth, losses, **more):
    """A phase that is told these validation losses, epoch after epoch."""
    told = iter(losses)
    return _planned(
        model, data, name, depth, epochs=len(losses), measure=lambda: {"loss": next(told)}, **more
    )


def _after(tiny_bert, data, tmp_path, epochs, depth=2):
    model = tiny_bert()
    plan = _with_figures(model, data, "upper", depth, [1.0 - n for n in range(5)])
    taken = 0
    for event in phases.fine_tune(
        model, _stack(floors.floors(model)), [plan], SETTINGS, point=tmp_path / f"after {epochs}"
    ):
        taken += isinstance(event, Measure)
        if taken == epochs:
            return _weights(model)
    return None


def test_the_next_phase_begins_with_the_best_epoch_of_the_one_before(tiny_bert, data, tmp_path):
    best = _after(tiny_bert, data, tmp_path, 2)
    model = tiny_bert()
    plan = _with_figures(model, data, "upper", 2, [0.5, 0.3, 0.4, 0.6, 0.7])
    told = _train(model, data, tmp_path / "whole", planned=[plan])
    assert all(torch.equal(value, best[name]) for name, value in _weights(model).items())
    assert told[-1].best == 10
    assert told[-1].figures == {"loss": 0.3}


class Killed(BaseException):
    """Stands for kill -9 between two writes."""


SAVES = 15  # of the training below, and one more


@pytest.mark.parametrize("write", range(1, SAVES + 1))
def test_a_training_killed_after_any_write_goes_on_to_the_bit(tiny_bert, data, tmp_path, monkeypatch, write):
    """Also between the best epoch's file and the point, and where the phase before ended with a worse epoch."""
    losses = {"upper": [0.5, 0.3, 0.4], "whole": [0.6, 0.2, 0.3, 0.1]}
    settings = replace(SETTINGS, save_every=4)

    def planned(model, told=()):
        """Losses by epoch, also where some of them were told before."""
        result = []
        for name, depth in (("upper", 2), ("whole", "all")):
            known = [event for event in told if isinstance(event, Measure) and event.phase == name]
            values = iter(losses[name][len(known) :])
            plan = _planned(model, data, name, depth, epochs=len(losses[name]), rate=1e-3)
            result.append(replace(plan, measure=lambda values=values: {"loss": next(values)}))
        return result

    undisturbed, broken, resumed = tiny_bert(), tiny_bert(), tiny_bert()
    expected = _train(undisturbed, data, tmp_path / "a", planned=planned(undisturbed), settings=settings)
    real, writes = resume.save, []

    def save(*arguments, **named):
        real(*arguments, **named)
        writes.append(1)
        if len(writes) == write:
            raise Killed

    monkeypatch.setattr(resume, "save", save)
    try:
        _train(broken, data, tmp_path / "b", planned=planned(broken), settings=settings)
    except Killed:
        assert write < SAVES
    else:
        assert write == SAVES, "the training makes fewer writes than are tried"
    monkeypatch.setattr(resume, "save", real)
    point = resume.load(tmp_path / "b" / "point")
    again = _train(
        resumed,
        data,
        tmp_path / "b",
        planned=planned(resumed, point.told if point else ()),
        settings=settings,
    )
    assert again == expected
    weights = _weights(undisturbed)
    assert all(torch.equal(value, weights[name]) for name, value in _weights(resumed).items())
    assert len(list((tmp_path / "b").glob("best-*"))) == 1


def _counts(name):
    """Told after every optimizer step: how many the parameter `name` has had, by its moments; None: no moments."""
    found = []

    def note(optimizer, *_):
        names = {
            key: value
            for group in optimizer.param_groups
            for key, value in zip(group["names"], group["params"], strict=True)
        }
        kept = optimizer.state.get(names.get(name), {})
        found.append(int(kept["step"]) if kept else None)

    return found, register_optimizer_step_post_hook(note)


def test_with_the_best_epochs_weights_come_its_moments(tiny_bert, data, tmp_path):
    model = tiny_bert()
    upper = _with_figures(model, data, "upper", 2, [0.5, 0.3, 0.4, 0.6])
    counts, hook = _counts("classifier.weight")
    _train(model, data, tmp_path, planned=[upper, _planned(model, data, "whole", "all")])
    hook.remove()
    assert counts[18:22] == [19, 20, 11, 12]  # the second of four epochs, of five steps each, was the best


def test_what_is_frozen_for_a_while_keeps_its_moments(tiny_bert, data, tmp_path):
    model = tiny_bert()
    counts, hook = _counts("bert.encoder.layer.3.output.dense.weight")
    _train(model, data, tmp_path, schedule=(("upper", 2), ("head", 0), ("again", 2)))
    hook.remove()
    assert counts[8:12] == [9, 10, None, None]
    assert counts[19:22] == [None, 11, 12]


def test_new_rows_learn_alone_after_the_whole_table_did(tiny_bert, data, tmp_path):
    model = tiny_bert()
    _, table = floors.word_table(model)
    whole = _planned(model, data, "whole", "all")
    rows = _with_rows(model, data, "upper", 2)
    before = []

    def work():
        before.append(table.detach().clone())
        return rows.work()

    _train(model, data, tmp_path, planned=[whole, replace(rows, work=work)])
    changed = (table.detach() != before[0]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [7, 11]


@pytest.mark.parametrize("stop_after", [4, 7, 13])
def test_what_did_not_fit_the_memory_goes_on_to_the_bit(tiny_bert, data, tmp_path, stop_after):
    """Dropout is drawn for parts of a batch from then on, also by who goes on."""

    def small(model):
        plan, begun = _planned(model, data, "upper", 2, epochs=3), []

        def work():
            real = plan.work()

            def forward(rows):
                begun.append(1)
                if len(rows) > 4 and (len(begun) - 1) % 40 == 2:  # the third batch of a run
                    raise torch.OutOfMemoryError("CUDA out of memory.")
                return real.forward(rows)

            return replace(real, forward=forward)

        return [replace(plan, work=work)]

    undisturbed, broken, resumed = tiny_bert(), tiny_bert(), tiny_bert()
    expected = _train(undisturbed, data, tmp_path / "a", planned=small(undisturbed))
    _train(broken, data, tmp_path / "b", stop_after=stop_after, planned=small(broken))
    again = _train(resumed, data, tmp_path / "b", planned=[_planned(resumed, data, "upper", 2, epochs=3)])
    parts = [event.parts for event in again if isinstance(event, Step)]
    assert parts == [1, 1, *[2] * 13]
    assert again == expected
    weights = _weights(undisturbed)
    assert all(torch.equal(value, weights[name]) for name, value in _weights(resumed).items())


def test_a_gradient_that_is_no_number_costs_no_weights(tiny_bert, data, tmp_path):
    model = tiny_bert()
    before = _weights(model)
    plan = _planned(model, data, "head", 0)

    def work():
        real = plan.work()

        def forward(rows):
            logits = real.forward(rows)
            return logits + (logits - logits.detach()).sqrt()  # adds 0, whose root has no gradient

        return replace(real, forward=forward)

    with pytest.raises(TrainingError, match=r"phase head, step 1: the gradient's norm is nan on rows row"):
        _train(model, data, tmp_path, planned=[replace(plan, work=work)])
    assert all(torch.equal(value, before[name]) for name, value in _weights(model).items())


def test_validation_that_is_no_number_ends_the_training_with_a_sentence(tiny_bert, data, tmp_path):
    model = tiny_bert()
    plan = _with_figures(model, data, "upper", 2, [0.5, float("nan"), 0.4])
    with pytest.raises(
        TrainingError, match="phase upper, step 10: on the validation rows the model's loss nan"
    ):
        _train(model, data, tmp_path, planned=[plan])


def test_a_phase_tells_its_end_once_even_where_it_is_told_again(tiny_bert, data, tmp_path):
    ended = []
    for stop_after in (11, None):
        model = tiny_bert()
        planned = [
            replace(_planned(model, data, name, depth), complete=lambda name=name: ended.append(name))
            for name, depth in SCHEDULE
        ]
        _train(model, data, tmp_path, stop_after=stop_after, planned=planned)
    assert ended == ["head", "head", "upper", "whole"]  # the point of step 11 was not written yet


def test_a_phase_ends_when_it_has_not_become_better_for_long_enough(tiny_bert, data, tmp_path):
    model = tiny_bert()
    plan = _with_figures(model, data, "upper", 2, [0.5, 0.4, 0.45, 0.41, 0.3], early_stopping=2)
    told = _train(model, data, tmp_path, planned=[plan])
    assert [event.step for event in told if isinstance(event, Measure)] == [5, 10, 15, 20]
    assert (told[-1].steps, told[-1].best) == (20, 10)


def test_how_far_each_floor_has_moved_is_told_and_frozen_ones_have_not(tiny_bert, data, tmp_path):
    model = tiny_bert()
    before = _weights(model)
    told = _train(model, data, tmp_path, schedule=(("upper", 1),))
    last = [event for event in told if isinstance(event, Change)][-1]
    assert {name: value == 0 for name, value in last.floors.items()} == {
        "embeddings": True, "layer 0": True, "layer 1": True, "layer 2": True, "layer 3": False, "head": False,
    }  # fmt: skip
    head = [name for name in before if name.startswith(("bert.pooler", "classifier"))]
    after = _weights(model)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in head]).norm()
    whole = torch.cat([before[name].flatten() for name in head]).norm()
    assert last.floors["head"] == pytest.approx(float(moved / whole), rel=1e-5)


def test_a_frozen_tensor_that_changes_is_noticed(tiny_bert, data, tmp_path):
    model = tiny_bert()
    plan = _planned(model, data, "head", 0)

    def spoil():
        with torch.no_grad():
            model.bert.encoder.layer[0].output.dense.bias += 1
        return plan.work()

    with pytest.raises(
        TrainingError, match=r"no phase has unfrozen have changed: bert\.encoder\.layer\.0\.out"
    ):
        _train(model, data, tmp_path, planned=[replace(plan, work=spoil)])


def test_a_phase_that_is_complete_is_never_run_again(tiny_bert, data, tmp_path):
    _train(tiny_bert(), data, tmp_path, stop_after=11)
    resumed = tiny_bert()
    planned = [_planned(resumed, data, name, depth) for name, depth in SCHEDULE]

    def refuse():
        raise AssertionError("the head's phase is complete")

    planned[0] = replace(planned[0], work=refuse)
    told = _train(resumed, data, tmp_path, planned=planned)
    assert [event.name for event in told if isinstance(event, Finished)] == ["head", "upper", "whole"]


@pytest.mark.parametrize("step", [2, 5, 13, 30])
def test_ctrl_c_waits_for_the_step_to_end_and_saves_it(tiny_bert, data, tmp_path, whole, step, caplog):
    model, taken = tiny_bert(), []

    def interrupt(*_):
        taken.append(1)
        if len(taken) == step:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    hook = register_optimizer_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        _train(model, data, tmp_path)
    hook.remove()
    assert signal.getsignal(signal.SIGINT) is handler
    point = resume.load(tmp_path / "point")
    assert sum(isinstance(event, Step) for event in point.told) == step
    assert "saved: the same command goes on from here" in caplog.text
    resumed = tiny_bert()
    assert _train(resumed, data, tmp_path) == whole[0]
    assert all(torch.equal(value, whole[1][name]) for name, value in _weights(resumed).items())


def test_a_second_ctrl_c_stops_at_once(tiny_bert, data, tmp_path):
    model = tiny_bert()
    plan = _planned(model, data, "whole", "all")
    twice = []

    def measure():
        signal.raise_signal(signal.SIGINT)
        twice.append(1)
        signal.raise_signal(signal.SIGINT)
        twice.append(2)

    with pytest.raises(KeyboardInterrupt):
        _train(model, data, tmp_path, planned=[replace(plan, measure=measure)])
    assert twice == [1]


@pytest.fixture
def ended():
    """SIGTERM ends this process as it does a stage."""

    def end(number, frame):
        raise SystemExit(143)

    former = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, former)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_who_is_told_to_end_several_times_still_saves_the_step(tiny_bert, data, tmp_path, ended, first):
    """Who cancels a run ends a group of processes, and then each of them."""

    def tell(*_):
        for number in (first, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)

    hook = register_optimizer_step_post_hook(tell)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        _train(tiny_bert(), data, tmp_path)
    hook.remove()
    assert sum(isinstance(event, Step) for event in resume.load(tmp_path / "point").told) == 1


def test_ctrl_c_during_frozen_work_acts_at_once(tiny_bert, data, tmp_path):
    plan = _planned(tiny_bert(), data, "head", 0)
    model, reached = tiny_bert(), []

    def work():
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        return plan.work()

    with pytest.raises(KeyboardInterrupt):
        _train(model, data, tmp_path, planned=[replace(_planned(model, data, "head", 0), work=work)])
    assert reached == []


def test_ctrl_c_after_the_last_step_is_not_lost(tiny_bert, data, tmp_path):
    model = tiny_bert()
    events = phases.fine_tune(
        model,
        _stack(floors.floors(model)),
        [_planned(model, data, "head", 0, epochs=1)],
        SETTINGS,
        point=tmp_path / "point",
    )
    with pytest.raises(KeyboardInterrupt):
        for event in events:
            if isinstance(event, Measure):
                signal.raise_signal(signal.SIGINT)


def test_training_in_another_thread_leaves_signals_alone(tiny_bert, data, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(_train, tiny_bert(), data, tmp_path, schedule=(("head", 0),)).result()
    assert isinstance(told[-1], Finished)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_full_disk_leaves_the_point_before_and_says_what_to_do(tiny_bert, data, tmp_path, monkeypatch):
    def full(target, tensors, header):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    _train(tiny_bert(), data, tmp_path, stop_after=4)
    kept = (tmp_path / "point").read_bytes()
    monkeypatch.setattr(resume, "write_tensors", full)
    with pytest.raises(TrainingError, match="no room left for a resume point: make room and run again"):
        _train(tiny_bert(), data, tmp_path)
    assert (tmp_path / "point").read_bytes() == kept
    assert not list(tmp_path.glob(".*"))


def _with_rows(model, data, name, depth, *, whole_forward=True):
    rows = NewRows(*floors.word_table(model), torch.tensor([7, 11]))
    return _planned(model, data, name, depth, new=rows, whole_forward=whole_forward)


def _train_rows(model, data, tmp_path, *, stop_after=None, **options):
    planned = [_with_rows(model, data, "head", 0, **options), _with_rows(model, data, "upper", 2, **options)]
    return _train(model, data, tmp_path, stop_after=stop_after, planned=planned)


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
    with pytest.raises(TrainingError, match=r"phase head, step 1: the loss is nan on rows row \d+, row"):
        _train(model, data, tmp_path)


class Drifting(Ranks):
    """As if a second process had computed the same, and its weights were others by a hair."""

    def gather(self, values):
        return [list(values), [value + 1e-9 for value in values]]

    def add_up(self, parameters): ...


def test_processes_whose_weights_drift_apart_are_stopped(tiny_bert, data, tmp_path):
    model = tiny_bert()
    events = phases.fine_tune(
        model,
        _stack(floors.floors(model)),
        [_planned(model, data, "head", 0)],
        SETTINGS,
        point=tmp_path / "point",
        ranks=Drifting(0, 2),
    )
    with pytest.raises(TrainingError, match=r"phase head: the weights of the 2 processes have drifted apart"):
        list(events)
