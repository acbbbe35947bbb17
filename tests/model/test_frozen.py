"""Training on kept states against training on everything computed: the same, or as near as the dtype is."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from tasks.model import adapters, boundary, floors, frozen, packed
from tasks.model.adapters import Adapter
from tasks.model.batches import Ragged, Rows
from tasks.model.boundary import Cache
from tasks.model.frozen import MEAN, READ, Frozen, border

ROWS = Rows(Ragged.of([[2, *range(5 + n, 9 + 2 * n), 3] for n in range(12)]), None, 0)


def _frozen(model, tmp_path, dtype="float32"):
    return Frozen(model, Cache(tmp_path / dtype, dtype, 10**9))


def _train(model, forward, start, steps=20):
    """Losses of training on batches as the states were computed, dropout on in what learns."""
    stack = floors.floors(model)[1 + start :]
    model.requires_grad_(False)
    learning = [value for floor in stack for value in floor.parameters.values()]
    for value in learning:
        value.requires_grad_(True)
    for module in (module for floor in stack for module in floor.modules):
        module.train()
    adam = torch.optim.AdamW(learning, lr=1e-3)
    torch.manual_seed(4)
    losses = []
    for step in range(steps):
        rows = ROWS.longest_first(frozen.BATCH)[0][step % 3 :: 3]
        loss = functional.cross_entropy(forward(rows), torch.tensor([row % 3 for row in rows]))
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    return losses


def _states_by_batch(model, home, start, dtype):
    """States computed in the very batches that training uses: the same sums in the same order."""
    wanted = boundary.Wanted(ROWS.lengths, 24, dtype, {"way": "same batches"})

    def compute(names):
        for part in range(3):
            places = ROWS.longest_first(frozen.BATCH)[0][part::3]
            given = ROWS.batch(places, model.device)
            with torch.no_grad():
                entering, spans = packed.embedded(model, given)
                states = packed.states(model, entering, spans, start=0, stop=start)
            yield places, {border(start): spans.padded(states)}

    return boundary.gather(home, {border(start): wanted}, compute)[border(start)]


def test_float32_states_of_the_same_batches_train_to_the_same_bits(tiny_bert, tmp_path):
    losses = {}
    for way in ("computed", "kept"):
        model = tiny_bert()
        made = _frozen(model, tmp_path)
        kept = _states_by_batch(model, tmp_path / "states", 2, "float32")
        forward = made.above(kept, 2, ROWS) if way == "kept" else made.whole(ROWS)
        losses[way] = _train(model, forward, 2), model.state_dict()
    assert losses["kept"][0] == losses["computed"][0]
    assert all(torch.equal(value, losses["computed"][1][name]) for name, value in losses["kept"][1].items())


@pytest.mark.parametrize(("dtype", "nearly"), [("float32", 1e-5), ("float16", 1e-3), ("int8", 5e-2)])
@pytest.mark.parametrize("start", [2, 4])
def test_kept_states_train_as_computed_ones_do(tiny_bert, tmp_path, dtype, nearly, start):
    reference, model = tiny_bert(), tiny_bert()
    expected = _train(reference, _frozen(reference, tmp_path).whole(ROWS), start)
    made = _frozen(model, tmp_path, dtype)
    name = made.name(start)
    kept = made.gather(ROWS, "rows", [name], about="test")[name]
    assert _train(model, made.above(kept, start, ROWS), start) == pytest.approx(expected, abs=nearly)


@pytest.mark.parametrize("mean", [True, False])
def test_one_pass_gives_all_states_and_the_pooled_ones_are_the_models_own(
    tiny_bert, tmp_path, monkeypatch, mean
):
    model = tiny_bert()
    passes = []
    monkeypatch.setattr(
        frozen, "_states", lambda *a, _real=frozen._states, **k: passes.append(1) or _real(*a, **k)
    )
    names = [border(1), border(3), READ, *([MEAN] if mean else [])]
    kept = _frozen(model, tmp_path).gather(ROWS, "rows", names, about="test")
    assert len(passes) == 1
    given = ROWS.batch([4], model.device)
    with torch.no_grad():
        hidden = model.base_model(**given, output_hidden_states=True).hidden_states
    for name, expected in ((border(1), hidden[1]), (border(3), hidden[3]), (READ, hidden[4][:, :1])):
        torch.testing.assert_close(kept[name].batch([4])[0], expected, rtol=0, atol=1e-5)
    if mean:
        torch.testing.assert_close(
            torch.tensor(frozen.pooled(kept[MEAN])[4]), hidden[4][0].mean(dim=0), rtol=0, atol=1e-5
        )


def _kept(made):
    return {path.name for path in made.cache.home.iterdir() if path.is_dir()}


def _eps(model):
    model.config.layer_norm_eps = 1e-3


def _attention(model):
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("change", [_eps, _attention])
def test_another_config_over_the_same_weights_has_other_states(tiny_bert, tmp_path, change):
    model = tiny_bert()
    made = _frozen(model, tmp_path)
    made.gather(ROWS, "rows", [border(2)], about="test")
    change(model)
    made.gather(ROWS, "rows", [border(2)], about="test")
    assert len(_kept(made)) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torch.__version__", "0"),
        ("transformers.__version__", "0"),
        ("files.digest_file", lambda path: "other code"),
    ],
)
def test_other_libraries_and_other_code_have_other_states(tiny_bert, tmp_path, monkeypatch, name, value):
    made = _frozen(tiny_bert(), tmp_path)
    made.gather(ROWS, "rows", [border(2)], about="test")
    owner, _, attribute = name.partition(".")
    monkeypatch.setattr(getattr(frozen, owner), attribute, value)
    made.gather(ROWS, "rows", [border(2)], about="test")
    assert len(_kept(made)) == 2


def test_other_rows_have_other_states(tiny_bert, tmp_path):
    made = _frozen(tiny_bert(), tmp_path)
    made.gather(ROWS, "rows", [border(2)], about="test")
    made.gather(ROWS, "others", [border(2)], about="test")
    assert len(_kept(made)) == 2


@pytest.mark.parametrize(("start", "kept"), [(2, 2), (1, 1)])
def test_states_depend_on_an_adapter_where_it_is_below_them(tiny_bert, tmp_path, start, kept):
    """Its strength stands in no tensor."""
    model = tiny_bert()
    adapters.inject(model, Adapter("lora", rank=2, alpha=4.0), [1], seed=1)
    made = _frozen(model, tmp_path)
    for alpha in (4.0, 8.0):
        replace(made, adapter={"alpha": alpha}).gather(ROWS, "rows", [border(start)], about="test")
    assert len(_kept(made)) == kept


def test_a_layer_below_that_has_changed_makes_kept_states_stale(tiny_bert, tmp_path):
    model = tiny_bert()
    made = _frozen(model, tmp_path)
    made.gather(ROWS, "rows", [border(2)], about="test")
    before = _kept(made)
    with torch.no_grad():
        model.bert.encoder.layer[3].output.dense.bias += 1  # above the border: nothing to the matter
    made.gather(ROWS, "rows", [border(2)], about="test")
    assert _kept(made) == before
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.bias += 1
    made.gather(ROWS, "rows", [border(2)], about="test")
    assert len(_kept(made)) == 2


def test_answers_come_with_the_places_of_their_rows(tiny_bert, tmp_path):
    model = tiny_bert()
    found = frozen.answers(_frozen(model, tmp_path).whole(ROWS), ROWS, description="test", size=5)
    logits = {place: row for places, rows in found for place, row in zip(places, rows, strict=True)}
    assert sorted(logits) == list(range(12))
    for place in (0, 7, 11):
        with torch.no_grad():
            expected = model(**ROWS.batch([place], model.device)).logits[0]
        torch.testing.assert_close(logits[place], expected, rtol=0, atol=1e-5)


def test_the_second_text_of_a_pair_reaches_the_model(tiny_bert, tmp_path):
    model = tiny_bert()
    types = Ragged.of([[0] * 3 + [1] * (length - 3) for length in ROWS.lengths])
    pairs = Rows(ROWS.input_ids, types, 0)
    one, other = (_frozen(model, tmp_path).whole(rows)([3, 4]) for rows in (ROWS, pairs))
    assert not torch.allclose(one, other)
