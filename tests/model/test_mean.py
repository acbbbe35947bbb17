"""A head that reads the mean of all tokens: however states are computed or kept, the class's own numbers."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from tasks import architectures
from tasks.model import adapters, boundary, floors, frozen, packed
from tasks.model.adapters import Adapter
from tasks.model.batches import Ragged, Rows
from tasks.model.boundary import Cache
from tasks.model.frozen import MEAN, Frozen, border

NAMES = sorted(architectures.CLASSES)
ROWS = Rows(Ragged.of([[2, *range(5 + n, 9 + 2 * n), 3] for n in range(12)]), None, 0, mean=True)
every_class = pytest.mark.parametrize("name", NAMES)
both_ways = pytest.mark.parametrize("end_to_end", [True, False])


@pytest.fixture
def made(tiny, tmp_path, monkeypatch):
    """A frozen model of this class, its rows computed end to end or padded."""

    def make(name, end_to_end=True):
        monkeypatch.setattr(packed, "known", lambda model: end_to_end)
        return Frozen(tiny(name), Cache(tmp_path / "states", "float32", 10**9))

    return make


def _stock(model, places):
    return model(**ROWS.batch(places, model.device)).logits


@every_class
@both_ways
def test_whole_or_on_kept_states_the_logits_are_the_models_own(made, name, end_to_end):
    one, places = made(name, end_to_end), [3, 11, 0, 7]
    with torch.no_grad():
        expected = _stock(one.model, places)
        torch.testing.assert_close(one.whole(ROWS)(places), expected, rtol=0, atol=1e-5)
        for start in (1, 3, 4):
            state = one.name(start)
            kept = one.gather(ROWS, "rows", [state], about="test")[state]
            torch.testing.assert_close(one.above(kept, start, ROWS)(places), expected, rtol=0, atol=1e-5)


@every_class
@both_ways
def test_gradients_are_the_models_own(made, name, end_to_end):
    one = made(name, end_to_end)
    _stock(one.model, [3, 11, 0]).square().sum().backward()
    expected = {name: value.grad for name, value in one.model.named_parameters()}
    one.model.zero_grad(set_to_none=True)
    one.whole(ROWS)([3, 11, 0]).square().sum().backward()
    for name, value in one.model.named_parameters():
        torch.testing.assert_close(value.grad, expected[name], rtol=1e-4, atol=1e-6)


def _learned(one, forward, start):
    """Losses of a few steps on the batches below, dropout on in what learns."""
    stack = floors.floors(one.model)[1 + start :]
    one.model.requires_grad_(False)
    learning = [value.requires_grad_(True) for floor in stack for value in floor.parameters.values()]
    for module in (module for floor in stack for module in floor.modules):
        module.train()
    adam = torch.optim.AdamW(learning, lr=1e-3)
    torch.manual_seed(4)
    losses = []
    for step in range(9):
        places = _batches()[step % 3]
        loss = functional.cross_entropy(forward(places), torch.tensor([place % 3 for place in places]))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


def _batches():
    return [ROWS.longest_first(12)[0][part::3] for part in range(3)]


@every_class
@pytest.mark.parametrize("start", [2, 4])
def test_float32_states_of_the_same_batches_train_to_the_same_bits(made, name, start, tmp_path):
    found = {}
    for way in ("computed", "kept"):
        one = made(name)
        kept = _states_by_batch(one, start, tmp_path / "own")
        forward = one.above(kept, start, ROWS) if way == "kept" else one.whole(ROWS)
        found[way] = _learned(one, forward, start), one.model.state_dict()
    assert found["kept"][0] == found["computed"][0]
    assert all(torch.equal(value, found["computed"][1][name]) for name, value in found["kept"][1].items())


def _states_by_batch(one, start, home):
    """Computed in the very batches that training uses: the same sums in the same order."""
    state, width = one.name(start), one.model.config.hidden_size
    lengths = ROWS.counts if state == MEAN else ROWS.lengths
    wanted = boundary.Wanted(lengths, width, "float32", {"way": state})

    def compute(_):
        for places in _batches():
            ((_, states),) = frozen._states(one.model, ROWS.only(places), [state], description="test")
            order = ROWS.only(places).longest_first(12)[0]
            yield [places[place] for place in order], states

    return boundary.gather(home, {state: wanted}, compute)[state]


def test_what_the_head_reads_is_kept_once_and_is_the_mean_that_baselines_read(made):
    one = made(NAMES[0])
    assert one.name(4) == MEAN
    kept = one.gather(ROWS, "rows", [border(2), one.name(4)], about="test")
    assert len([path for path in one.cache.home.iterdir() if path.is_dir()]) == 2
    with torch.no_grad():
        hidden = one.model.base_model(**ROWS.batch([5], one.model.device)).last_hidden_state
    np.testing.assert_allclose(frozen.pooled(kept[MEAN])[5], hidden[0].mean(dim=0), atol=1e-5)
    assert one.size(ROWS, 4) == 12 * 24 * 4


@every_class
def test_an_adapter_learns_below_the_mean_and_is_merged(made, name):
    one = made(name)
    before = {key: value.clone() for key, value in one.model.state_dict().items()}
    adapters.inject(one.model, Adapter("lora", rank=4), [2, 3], seed=1)
    kept = one.gather(ROWS, "rows", [border(2)], about="test")[border(2)]
    _learned(one, one.above(kept, 2, ROWS), 2)
    assert adapters.merge(one.model, ROWS.batch([0, 5], one.model.device)) < 1e-4
    after = one.model.state_dict()
    assert after.keys() == before.keys()
    assert not all(torch.equal(after[key], value) for key, value in before.items())
