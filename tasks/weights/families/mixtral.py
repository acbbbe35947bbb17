"""Mixtral (Jiang et al., 2024, arXiv 2401.04088): Llama with several feed-forward networks in each layer.

A router chooses some of them for each token and weights them, so that their weights add up to one: where all
are equal they compute what one does. Names are those that transformers reads and writes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.weights.families.family import same
from tasks.weights.families.llama import AXES, BASE, DEFAULTS, EMBEDDING, HEAD, LAYER, extras, layers, turning
from tasks.weights.families.naming import Config, Description, Naming, demand_equal
from tasks.weights.rules import Rule

SPARSE = f"{LAYER}block_sparse_moe."
EXPERT = f"{SPARSE}experts.{{e*}}."
PLAIN = {"attention_bias": False, "mlp_bias": False}  # it has no biases at all
BALANCE = (
    0.01  # weight of the loss that balances the experts' load (Sukhbaatar et al., 2024, arXiv 2403.07816)
)
EXPERTS = 8  # that transformers takes where config.json names no number
THEIRS = Description("mixtral", needed=("num_hidden_layers",), optional=("num_local_experts",))


@dataclass(frozen=True)
class Sparse:
    """The class of transformers that has experts where another has one feed-forward network.

    tensors: template of the one network's tensor -> that of its experts', with {e*} for their number.
    router: of (experts, hidden). config: of the dense model's config, the number of experts, and how many
    of them read a token; raises CheckpointError for what the class cannot compute. computing: fields of
    such a config that what a model computes depends on.
    """

    architecture: str
    tensors: Mapping[str, str]
    router: str
    config: Callable[[Config, int, int], dict[str, Any]]
    computing: tuple[str, ...]


def _config(dense: Config, experts: int, chosen: int) -> dict[str, Any]:
    """What the dense config leaves out is written down: Mixtral's defaults are others."""
    whole = {**dense, **AXES.full(dense)}
    demand_equal(whole, "Mixtral", PLAIN)
    kept = {
        name: value for name, value in whole.items() if name not in (*PLAIN, "rope_theta", "rope_scaling")
    }
    return {
        **kept,
        "model_type": "mixtral",
        "rope_parameters": turning(dense),
        "sliding_window": None,
        "num_local_experts": experts,
        "num_experts_per_tok": chosen,
        "router_aux_loss_coef": BALANCE,
    }


MIXTRAL = Sparse(
    architecture="MixtralForCausalLM",
    tensors={
        f"{LAYER}mlp.gate_proj.weight": f"{EXPERT}w1.weight",
        f"{LAYER}mlp.down_proj.weight": f"{EXPERT}w2.weight",
        f"{LAYER}mlp.up_proj.weight": f"{EXPERT}w3.weight",
    },
    router=f"{SPARSE}gate.weight",
    config=_config,
    computing=(
        *(name for name in DEFAULTS if name not in PLAIN),
        "num_hidden_layers",
        "num_key_value_heads",
        "head_dim",
        "rope_parameters",
    ),
)


def _own_rules(config: Config) -> tuple[Rule, ...]:
    head = () if config.get("tie_word_embeddings") else (HEAD,)
    return same(
        EMBEDDING,
        "model.norm.weight",
        *head,
        f"{LAYER}{{m:input|post_attention}}_layernorm.weight",
        f"{LAYER}self_attn.{{m:q|k|v|o}}_proj.weight",
        MIXTRAL.router,
        f"{SPARSE}experts.{{e}}.{{m:w1|w2|w3}}.weight",
    )


def _numbers(config: Config) -> Mapping[str, Iterable[int]]:
    return {**layers(config), "e": range(config.get("num_local_experts") or EXPERTS)}


OWN = Naming(
    name="mixtral",
    architecture=MIXTRAL.architecture,
    theirs=THEIRS,
    rules=_own_rules,
    numbers=_numbers,
    config=THEIRS.checked,
    back=THEIRS.checked,
    drops=extras,
    accepts=extras,
    prefix=BASE,
    base=BASE,
)
