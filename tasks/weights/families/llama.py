"""Llama (Touvron et al., 2023) as transformers writes it, and the names that others have taken from Meta."""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.families.axes import Axes, Width, completed, embedding, linear, norm, together
from tasks.weights.families.family import P, same, tie
from tasks.weights.families.naming import (
    Blocks,
    Config,
    Description,
    Naming,
    buffers,
    demand,
    demand_equal,
    lacks,
)
from tasks.weights.ops import Rotary
from tasks.weights.rules import Rule

BASE = "model."
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
OURS, LAYER = "layers.{n}.", "model.layers.{n}."
MODULES = {  # those that are not turned, Meta's name -> transformers'
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
CLOSING = (f"{LAYER}self_attn.o_proj.{P}", f"{LAYER}mlp.down_proj.{P}")
BLOCKS = Blocks("num_hidden_layers", CLOSING)
DEFAULTS: Mapping[str, Any] = {  # what transformers takes for a field that config.json leaves out
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}
PLAIN = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}  # as Meta computes it
THETA = 10000.0  # the base of the rotary frequencies (Su et al., 2021), where nobody says another
SIZES = {  # the name in Meta's params.json -> transformers'
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
}
NEEDED = (*SIZES.values(), "intermediate_size")
OPTIONAL = ("num_key_value_heads", "head_dim", "max_position_embeddings")
THEIRS = Description("llama", needed=("num_hidden_layers",), optional=(*NEEDED, *OPTIONAL))
SIZED = Description("llama", needed=NEEDED, optional=OPTIONAL)  # others have no defaults


def _full(config: Config) -> dict[str, Any]:
    full = completed(config, DEFAULTS)
    size = full["hidden_size"] // full["num_attention_heads"]
    return {"head_dim": size, **full, "num_key_value_heads": key_heads(full)}


AXES = Axes(
    layouts=together(
        (
            embedding("model.embed_tokens", "vocabulary"),
            norm("model.norm"),
            norm(f"{LAYER}{{m:input|post_attention}}_layernorm"),
            linear(f"{LAYER}self_attn.q_proj", "heads", "hidden"),
            linear(f"{LAYER}self_attn.{{m:k|v}}_proj", "keys", "hidden"),
            linear(f"{LAYER}self_attn.o_proj", "hidden", "heads"),
            linear(f"{LAYER}mlp.{{m:gate|up}}_proj", "inner", "hidden"),
            linear(f"{LAYER}mlp.down_proj", "hidden", "inner"),
            linear("lm_head", "vocabulary", "hidden"),
        )
    ),
    fields={
        "vocabulary": ("vocab_size",),
        "hidden": ("hidden_size",),
        "heads": ("num_attention_heads", "head_dim"),
        "keys": ("num_key_value_heads", "head_dim"),
        "inner": ("intermediate_size",),
    },
    full=_full,
    width=Width(
        "hidden_size", "num_attention_heads", "intermediate_size", "num_key_value_heads", HEAD, EMBEDDING
    ),
)


def layers(config: Config) -> Mapping[str, Iterable[int]]:
    return {"n": range(config["num_hidden_layers"])}


def key_heads(config: Config) -> int:
    """Heads of keys and values: as many as of queries in models that do not share them."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def rules(config: Config) -> tuple[Rule, ...]:
    """Meta's names; its rotary pairs are neighbouring rows, transformers' lie half a head apart."""
    head = () if config.get("tie_word_embeddings") else (Rule("output.weight", HEAD),)
    queries, keys = Rotary(config["num_attention_heads"]), Rotary(key_heads(config))
    return (
        Rule("tok_embeddings.weight", EMBEDDING),
        Rule("norm.weight", "model.norm.weight"),
        *head,
        Rule(f"{OURS}attention.wq.weight", f"{LAYER}self_attn.q_proj.weight", queries),
        Rule(f"{OURS}attention.wk.weight", f"{LAYER}self_attn.k_proj.weight", keys),
        *(Rule(f"{OURS}{name}.weight", f"{LAYER}{module}.weight") for name, module in MODULES.items()),
    )


def extras(config: Config) -> tuple[Rule, ...]:
    """What checkpoints of transformers' Llama hold besides its parameters."""
    frequencies = buffers("model.rotary_emb.inv_freq", f"{LAYER}self_attn.rotary_emb.inv_freq")
    return (*frequencies, tie(HEAD, EMBEDDING)) if config.get("tie_word_embeddings") else frequencies


def described(given: Config, **fields: Any) -> dict[str, Any]:
    """transformers' config of a model whose sizes are `given`; a checkpoint without a head has it tied.

    Raises CheckpointError for heads that do not divide. `demand` has seen the sizes.
    """
    heads, keys = given["n_heads"], given.get("n_kv_heads") or given["n_heads"]
    if given["dim"] % (2 * heads) or heads % keys:
        raise CheckpointError(
            f"dim {given['dim']} does not divide into pairs of {heads} heads, or these not into {keys} of "
            "keys and values: mend the config"
        )
    sizes = {theirs: given[ours] for ours, theirs in SIZES.items()}
    return {
        **sizes,
        **fields,
        "model_type": "llama",
        "num_key_value_heads": keys,
        "head_dim": given["dim"] // heads,
        "hidden_act": "silu",
        "tie_word_embeddings": lacks(given, "output.weight"),
    }


def plain(config: Config, naming: str) -> dict[str, Any]:
    """transformers' config, with the values that transformers takes for what it leaves out.

    Raises CheckpointError for what Meta's code cannot compute.
    """
    checked = SIZED.checked(config)
    width = checked["hidden_size"] // checked["num_attention_heads"]
    full = {**DEFAULTS, **checked, "head_dim": checked.get("head_dim") or width}
    full |= {"num_key_value_heads": key_heads(checked), "rope_theta": theta(checked)}
    full["rope_type"] = _rotary(checked)["rope_type"]
    demand_equal(full, naming, {**PLAIN, "head_dim": width, "rope_type": "default"})
    return full


def sizes(full: Config) -> dict[str, Any]:
    """Of what `plain` returns, in Meta's words."""
    return {
        **{ours: full[theirs] for ours, theirs in SIZES.items()},
        "n_kv_heads": full["num_key_value_heads"],
    }


def theta(config: Config) -> float:
    found = {**config, **_rotary(config)}
    demand(found, "llama", numbers=("rope_theta",))
    return float(found.get("rope_theta") or THETA)


def turning(config: Config) -> dict[str, Any]:
    """How its heads are turned, all that transformers needs for it in one place."""
    return {**_rotary(config), "rope_theta": theta(config)}


def _rotary(config: Config) -> Mapping[str, Any]:
    """Under the name of transformers 5, or the one before; its type was once `type`."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_type": found.get("type", "default"), **found}


def rotary(base: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base}


def _own_rules(config: Config) -> tuple[Rule, ...]:
    attention, mlp = (P if config.get(f"{part}_bias") else "weight" for part in ("attention", "mlp"))
    head = () if config.get("tie_word_embeddings") else (HEAD,)
    return same(
        EMBEDDING,
        "model.norm.weight",
        *head,
        f"{LAYER}{{m:input|post_attention}}_layernorm.weight",
        f"{LAYER}self_attn.{{m:q|k|v}}_proj.{attention}",
        f"{LAYER}self_attn.o_proj.{attention}",
        f"{LAYER}mlp.{{m:gate|up}}_proj.{mlp}",
        f"{LAYER}mlp.down_proj.{mlp}",
    )


LLAMA = Naming(
    name="llama",
    architecture="LlamaForCausalLM",
    theirs=THEIRS,
    rules=_own_rules,
    numbers=layers,
    config=THEIRS.checked,
    back=THEIRS.checked,
    drops=extras,
    accepts=extras,
    prefix=BASE,
    base=BASE,
)
