from dataclasses import replace

import pytest

from tasks.params import FinetuningParams
from tasks.training.cautions import cautions
from tasks.training.forecast import Lengths, Outline, Schedule, Tensor

NAMES = ["embeddings", *(f"layer {number}" for number in range(6)), "head"]
EACH = {"weight": Tensor((8, 8), "attention"), "up": Tensor((32, 8), "feed-forward")}
OUTLINE = Outline(dict.fromkeys(NAMES, EACH), 8, 32, 2)
ROWS = Lengths([10] * 100, [10] * 10)  # 1,100 tokens: 17,600 bytes of float16 states, 17.6 kB
HEAD = {"name": "head", "depth": 0, "learning_rate": 1e-3}


def _cautions(*phases, free=2**40, lengths=ROWS, mean=False, **settings):
    chosen = FinetuningParams.model_validate({"phases": phases, **settings})
    return cautions(Schedule(OUTLINE, lengths, chosen), free=free, mean=mean)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"depth": 2, "learning_rate": 3e-4}, "phase body: learning rate 0.0003 is not far below the 0.001"),
        ({"depth": "all", "learning_rate": 2e-4}, None),
        ({"depth": 0, "floors": ["biases"], "learning_rate": 1e-3}, "is not far below the 0.001"),
        ({"depth": 7, "learning_rate": 1e-5}, "phase body will fail: depth 7, and the model has 6 layers"),
    ],
)
def test_a_phase_after_the_head(phase, message):
    found = _cautions(HEAD, {"name": "body", **phase})
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


INNER = {"name": "inner", "depth": "half", "only": "feed-forward", "learning_rate": 1e-4}
ONE = Outline({name: OUTLINE.floors[name] for name in ("embeddings", "layer 0", "head")}, 8, 32, 2)


@pytest.mark.parametrize(
    ("changes", "phases", "message"),
    [
        ({"outline": ONE}, [HEAD, INNER], "phase inner will fail: depth half of 1 layers has no feed"),
        ({"fresh": 3}, [HEAD, INNER], "phase inner will fail: the embeddings of new tokens learn in every"),
        ({"drawn": ["head.weight"]}, [INNER], "fine-tuning will fail: head.weight would stay as drawn"),
        ({"drawn": ["head.weight"]}, [HEAD, INNER], None),
        ({}, [INNER], None),
    ],
)
def test_what_learns_alone_keeps_the_rest_from_learning(changes, phases, message):
    settings = FinetuningParams.model_validate({"phases": phases})
    schedule = Schedule(**{"outline": OUTLINE, "lengths": ROWS, "settings": settings, **changes})
    found = cautions(schedule, free=2**40)
    assert len(found) == (message is not None)
    assert message is None or found[0].startswith(message)


SPARSE = Outline(
    {name: {**tensors, "gate": Tensor((3, 8), "router")} for name, tensors in OUTLINE.floors.items()},
    8,
    32,
    2,
)
SINGLE = replace(SPARSE, chosen=1)
ALL = {"name": "all", "depth": "all", "learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("outline", "changes", "message"),
    [
        (OUTLINE, {"router_aux_loss_coef": 0.1}, "no layer has experts for finetuning.router_aux_loss_coef"),
        (SPARSE, {"router_aux_loss_coef": 0.1}, None),
        (
            SPARSE,
            {"adapter": {"kind": "lora", "targets": "all-linear"}},
            "no adapter reaches a layer's experts",
        ),
        (SPARSE, {"adapter": {"kind": "ia3"}}, "no adapter reaches a layer's experts"),
        (SPARSE, {"adapter": {"kind": "rslora", "targets": "attention"}}, None),
        (OUTLINE, {"adapter": {"kind": "ia3"}}, None),
        (SINGLE, {}, "phase all: one expert reads a token, at weight 1 whatever its router says"),
        (SINGLE, {"phases": [{**ALL, "only": "router"}]}, "phase all will fail: one expert reads a token"),
        (SINGLE, {"phases": [{**ALL, "only": "feed-forward"}]}, None),
        (SINGLE, {"adapter": {"kind": "lora", "targets": "attention"}}, None),
        (replace(SPARSE, chosen=2), {"phases": [{**ALL, "only": "router"}]}, None),
        (
            OUTLINE,
            {"phases": [{**ALL, "only": "router"}]},
            "phase all will fail: depth all of 6 layers has no",
        ),
        (SPARSE, {"phases": [{**ALL, "only": "router"}]}, None),
    ],
)
def test_what_wants_experts_or_none(outline, changes, message):
    settings = FinetuningParams.model_validate({"phases": [ALL], **changes})
    found = cautions(Schedule(outline, ROWS, settings), free=2**40)
    assert len(found) == (message is not None)
    assert message is None or message in found[0]


@pytest.mark.parametrize(("rate", "mean", "count"), [(1e-3, True, 1), (1e-2, True, 0), (1e-3, False, 0)])
def test_a_head_that_reads_the_mean_wants_a_higher_rate(rate, mean, count):
    found = _cautions({**HEAD, "learning_rate": rate}, mean=mean)
    assert len(found) == count
    assert all("is one linear layer, and learns little at 0.001; take about 1e-2" in one for one in found)


def test_body_layers_must_not_learn_like_a_head():
    assert "uppermost layer would learn at 0.05" in "".join(
        _cautions({"name": "all", "depth": "all", "learning_rate": 0.1, "layer_decay": 0.5})
    )
    assert _cautions({"name": "all", "depth": "all", "learning_rate": 0.02, "layer_decay": 0.5}) == []
    alone = {**INNER, "learning_rate": 0.02, "layer_decay": 0.5}
    assert "uppermost layer would learn at 0.02" in "".join(_cautions(alone))


def test_a_head_that_learns_after_the_body_sets_no_limit_to_it():
    assert _cautions({"name": "body", "depth": 2, "learning_rate": 5e-4}, HEAD) == []


def test_adapters_may_learn_nearly_as_fast_as_a_head():
    lora = {"name": "lora", "depth": "all", "learning_rate": 5e-4}
    assert _cautions(HEAD, lora, adapter={"kind": "lora"}) == []


def test_a_batch_of_more_rows_than_there_are():
    assert _cautions(HEAD, batch_size=101) == [
        "finetuning.batch_size 101 is more than the 100 rows of train: an epoch is one step"
    ]
    assert _cautions(HEAD, batch_size=100) == []
    assert _cautions(HEAD, batch_size=101, lengths=None) == []


def test_states_that_do_not_fit_are_told():
    upper = {"name": "upper", "depth": 2, "epochs": 3, "learning_rate": 1e-4}
    assert _cautions(upper) == []
    assert "0 MB, more than finetuning.cache.maximum_bytes leaves" in "".join(
        _cautions(upper, cache={"maximum_bytes": 17_599})
    )
    assert _cautions(upper, cache={"maximum_bytes": 17_600}) == []
    assert "set finetuning.cache.dtype to int8 or none" in "".join(_cautions(upper, free=17_599))
    assert _cautions(upper, free=17_600) == []
