"""transformers' own tables as rules: what we convert loads without any conversion and computes the same."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    Glm4MoeConfig,
    GPTNeoXConfig,
    Inkling2TextConfig,
    MixtralConfig,
    NomicBertConfig,
    OlmoHybridConfig,
    PhimoeConfig,
    Qwen2MoeConfig,
    SwinConfig,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    Conv3dToLinear,
    ErnieFuseAndSplitTextVisionExperts,
    Interleave,
    MergeModulelist,
    PermuteForRope,
    Split,
    Transpose,
    WeightConverter,
)

from tasks.errors import CheckpointError, PlanError
from tasks.weights import borrowed, proof
from tasks.weights.counterparts import Aim, Group, counterpart
from tasks.weights.formats import open_checkpoint
from tasks.weights.transcribe import transcribe

SIZES = {
    "vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 33, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 28, "num_experts_per_tok": 2}
CASES = {  # the class, and a config in which no two sizes are equal
    "MixtralForCausalLM": MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=2),
    "Qwen2MoeForCausalLM": Qwen2MoeConfig(**SIZES, **EXPERTS, num_experts=3, shared_expert_intermediate_size=20),
    "PhimoeForCausalLM": PhimoeConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2, tie_word_embeddings=True),
    "Glm4MoeForCausalLM": Glm4MoeConfig(**SIZES, **EXPERTS, n_routed_experts=6, first_k_dense_replace=1, head_dim=6),
    "NomicBertModel": NomicBertConfig(**{**SIZES, "num_key_value_heads": 4}),  # one matrix into three
    "OlmoHybridForCausalLM": OlmoHybridConfig(
        **SIZES, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2,
        linear_num_value_heads=2, linear_key_head_dim=6, linear_value_head_dim=10,
    ),  # three convolutions into one
    "GPTNeoXForCausalLM": GPTNeoXConfig(**SIZES),  # another name for the head
}  # fmt: skip


@pytest.fixture(params=CASES)
def old(request, tmp_path):
    """A random model as transformers saves it: in the layout that its table converts when it loads."""
    torch.manual_seed(3)
    model = getattr(transformers, request.param)(CASES[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "old")
    return tmp_path / "old"


def state(directory):
    """What transformers itself makes of a checkpoint."""
    config = json.loads((directory / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(directory).state_dict()


def test_the_old_layout_becomes_the_models_own_computes_the_same_and_comes_back(old, tmp_path):
    theirs, kept = state(old), load_file(old / "model.safetensors")
    there = borrowed.planned(open_checkpoint(old))
    transcribe(there, tmp_path / "new", prove=lambda draft: {"load": proof.loads(draft)})
    made = load_file(tmp_path / "new" / "model.safetensors")
    assert made.keys() != kept.keys()
    assert made.keys() <= theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in made.items())
    assert "max |difference| 0 of" in proof.logits_agree(old, tmp_path / "new")
    transcribe(borrowed.planned(open_checkpoint(tmp_path / "new"), reverse=True), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == kept.keys()
    assert all(back[name].dtype == kept[name].dtype and torch.equal(back[name], kept[name]) for name in kept)


def test_layers_of_different_widths_are_told_one_by_one(tmp_path):
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=12, depths=[1, 2], num_heads=[2, 3], window_size=4
    )
    transformers.SwinModel(config).save_pretrained(tmp_path / "old")
    theirs, kept = state(tmp_path / "old"), load_file(tmp_path / "old" / "model.safetensors")
    made = borrowed.planned(open_checkpoint(tmp_path / "old"))
    transcribe(made, tmp_path / "new")
    ours = load_file(tmp_path / "new" / "model.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert ours.keys() != kept.keys()
    transcribe(borrowed.planned(open_checkpoint(tmp_path / "new"), reverse=True), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == kept.keys()
    assert all(torch.equal(back[name], kept[name]) for name in kept)


def test_what_has_the_models_own_names_already_stays_as_it_is(old, tmp_path):
    transcribe(borrowed.planned(open_checkpoint(old)), tmp_path / "new")
    again = borrowed.planned(open_checkpoint(tmp_path / "new"))
    assert {move.action for move in again.plan.moves} == {"copied"}


def save_mixtral(directory, change=lambda tensors: None, **fields):
    """A tiny Mixtral whose tensors and config.json are changed."""
    transformers.MixtralForCausalLM(CASES["MixtralForCausalLM"]).save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text()) | fields
    (directory / "config.json").write_text(json.dumps(config))
    return open_checkpoint(directory)


def test_experts_are_copied_as_runs_of_bytes_and_told_in_a_line_for_all_layers(tmp_path):
    made = borrowed.planned(save_mixtral(tmp_path)).plan
    assert made.memory == 0
    layer = "model.layers.{n}.block_sparse_moe.experts.{e*}"
    (rule,) = {move.rule for move in made.moves if move.target.endswith("gate_up_proj")}
    assert rule.sources == (f"{layer}.w1.weight", f"{layer}.w3.weight")
    assert rule.target == "model.layers.{n}.mlp.experts.gate_up_proj"


GATE = "model.layers.1.block_sparse_moe.experts.1.w1.weight"


def test_an_expert_that_lacks_a_projection_is_named(tmp_path):
    source = save_mixtral(tmp_path, lambda tensors: tensors.pop(GATE))
    with pytest.raises(PlanError, match=r"gate_up_proj: these experts \(2 of .* and 3 of"):
        borrowed.planned(source)


def test_a_tensor_that_leads_nowhere_is_named(tmp_path):
    source = save_mixtral(tmp_path, lambda tensors: tensors.update(more=torch.ones(2)))
    with pytest.raises(PlanError, match="1 of its 36 tensors match no rule: more"):
        borrowed.planned(source)


def test_a_tied_head_that_was_saved_too_goes_nowhere(tmp_path):
    def tie(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    made = borrowed.planned(save_mixtral(tmp_path, tie, tie_word_embeddings=True)).plan
    assert [(unused.source.name, unused.rule.reason) for unused in made.unused] == [
        ("lm_head.weight", "tied: model.embed_tokens.weight under a second name")
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": None}, 'architectures in config.json is None, not one class .* write the model\'s'),
        ({"architectures": ["Nothing"]}, r"is \['Nothing'\], not one class"),
        ({"architectures": ["Path"]}, r"is \['Path'\], not one class"),
        ({"architectures": "MixtralForCausalLM"}, "not one class"),
        ({"num_hidden_layers": 10**9}, "tells of 1,000,000,000 layers, the file holds 35 tensors"),
        ({"hidden_size": "wide"}, "does not describe a MixtralForCausalLM"),
        ({"model_type": None}, "does not describe a MixtralForCausalLM"),
    ],
)  # fmt: skip
def test_a_config_that_names_no_model_of_transformers_is_refused(tmp_path, fields, message):
    source = save_mixtral(tmp_path, **fields)
    with pytest.raises(CheckpointError, match=message):
        borrowed.planned(source)


@pytest.fixture
def register():
    """Puts another table in the place of transformers' for Mixtral, as users may."""
    from transformers import conversion_mapping

    before = conversion_mapping.get_checkpoint_conversion_mapping("mixtral")
    yield lambda *entries: register_checkpoint_conversion_mapping("mixtral", list(entries), overwrite=True)
    register_checkpoint_conversion_mapping("mixtral", before, overwrite=True)
    conversion_mapping.USER_REGISTERED_MAPPINGS.discard("mixtral")


def test_an_operation_without_a_counterpart_is_named(tmp_path, register):
    source = save_mixtral(tmp_path)
    operation = ErnieFuseAndSplitTextVisionExperts()
    register(WeightConverter("block_sparse_moe.experts.*.w1.weight", "mlp.experts.gate_up_proj", [operation]))
    with pytest.raises(PlanError, match="no op here for transformers' ErnieFuseAndSplitTextVisionExperts"):
        borrowed.planned(source)


def test_what_transformers_would_turn_a_second_time_is_refused(tmp_path, register):
    source = save_mixtral(tmp_path)
    register(WeightConverter("self_attn.q_proj.weight", "self_attn.q_proj.weight", [Transpose(0, 1)]))
    with pytest.raises(
        PlanError, match=r"would convert model\.layers\.0\.self_attn\.q_proj\.weight, .* again"
    ):
        borrowed.planned(source)


# --- operations ------------------------------------------------------------------------------------

ONE, THREE = ("to",), ("to.q_proj", "to.k_proj", "to.v_proj")
HEADS = Inkling2TextConfig(num_attention_heads=2)
OPERATIONS = [  # transformers' own, tensors for each of its patterns, targets
    ([Chunk(dim=0)], [[(6, 5)]], THREE),
    ([Chunk(dim=1)], [[(5, 6)]], THREE),
    ([Concatenate(dim=0)], [[(2, 5)], [(3, 5)], [(4, 5)]], ONE),
    ([Concatenate(dim=1)], [[(5, 2)], [(5, 3)]], ONE),
    ([MergeModulelist(dim=0)], [[(3, 5)] * 4], ONE),
    ([MergeModulelist(dim=0), Concatenate(dim=1)], [[(3, 5)] * 4, [(3, 5)] * 4], ONE),
    ([MergeModulelist(dim=0), Concatenate(dim=1), Transpose(1, 2)], [[(3, 5)] * 4, [(3, 5)] * 4], ONE),
    ([Transpose(0, 1)], [[(3, 5)]], ONE),
    ([Transpose(1, 2)], [[(2, 3, 5)]], ONE),
    ([Interleave(dim=1)], [[(3, 10, 2)]], ONE),
    ([Interleave(dim=1, inverse=True)], [[(3, 10, 2)]], ONE),
    ([Interleave(dim=0), Chunk(dim=0)], [[(18, 5)]], THREE),
    ([PermuteForRope()], [[(12, 5)]], ONE),
    ([PermuteForRope(inverse=True)], [[(12,)]], ONE),
    ([Chunk(dim=0), PermuteForRope(permute_layer_names=["q_proj", "k_proj"])], [[(36, 5)]], THREE),
    ([Conv3dToLinear(3, (2, 5, 7))], [[(4, 3, 2, 5, 7)]], ONE),
]  # fmt: skip


def run(operations, given, targets):
    """What transformers' operations make of the tensors, by target."""
    made = {pattern: list(tensors) for pattern, tensors in given.items()}
    for operation in operations:
        made = operation.convert(
            made, source_patterns=list(given), target_patterns=list(targets), config=HEADS
        )
    return [made[target] for target in targets]


@pytest.mark.parametrize(("operations", "shapes", "targets"), OPERATIONS, ids=str)
def test_a_counterpart_makes_what_transformers_operations_make_and_is_undone(operations, shapes, targets):
    numbers = iter(range(10**6))
    given = {
        f"from.{kind}": [
            torch.tensor([next(numbers) for _ in range(torch.Size(s).numel())]).reshape(s) for s in group
        ]
        for kind, group in enumerate(shapes)
    }
    theirs = run(operations, given, targets)
    groups = tuple(Group(f"from.{kind}", tuple(group)) for kind, group in enumerate(shapes))
    aims = {target: tuple(tensor.shape) for target, tensor in zip(targets, theirs, strict=True)}
    op = counterpart(operations, groups, Aim(aims, HEADS))
    flat = [tensor.numpy() for tensors in given.values() for tensor in tensors]
    ours = op.forward(flat, "I64")
    assert op.shapes([array.shape for array in flat]) == list(aims.values())
    for mine, yours in zip(ours, theirs, strict=True):
        assert (mine == yours.numpy()).all()
    for mine, yours in zip(op.inverse().forward(ours, "I64"), flat, strict=True):
        assert (mine == yours).all()


def test_a_split_takes_the_sizes_of_the_model():
    aim = Aim({"q": (4, 5), "k": (2, 5), "v": (3, 5)}, None)
    op = counterpart([Split(dim=0)], (Group("qkv", ((9, 5),)),), aim)
    assert op.shapes([(9, 5)]) == [(4, 5), (2, 5), (3, 5)]


def test_a_transpose_that_looks_at_shapes_leaves_what_fits():
    turn = Transpose(1, 2, check_dims=True)
    aim = Aim({"to": (2, 3, 5)}, None)
    assert counterpart([turn], (Group("from", ((2, 5, 3),)),), aim).shapes([(2, 5, 3)]) == [(2, 3, 5)]
    assert counterpart([turn], (Group("from", ((2, 3, 5),)),), aim).shapes([(2, 3, 5)]) == [(2, 3, 5)]


@pytest.mark.parametrize(
    ("operations", "groups"),
    [
        ([Chunk(dim=0)], (Group("from", ((7, 5),)),)),
        ([Chunk(dim=0, num_shards_attribute="x")], (Group("from", ((6, 5),)),)),
        ([MergeModulelist(dim=1)], (Group("from", ((6, 5),)),)),
        ([MergeModulelist(dim=0)], (Group("from", ((6, 5),)), Group("other", ((6, 5),)))),
        ([MergeModulelist(dim=0), Concatenate(dim=1)], (Group("from", ((6, 5),)), Group("other", ((4, 5),)))),
        ([Transpose(0, 1)], (Group("from", ((6, 5), (6, 5))),)),
    ],
)
def test_shapes_that_an_operation_does_not_take_are_refused(operations, groups):
    with pytest.raises(ValueError, match=r"divide|joins|one shape|one tensor"):
        counterpart(operations, groups, Aim({"a": (1,), "b": (1,)}, HEADS))
