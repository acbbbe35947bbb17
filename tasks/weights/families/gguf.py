"""GGUF files of Llama's kind (Llama, SmolLM2, TinyLlama): llama.cpp's names, and its order of rotary rows.

Names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
"""

from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.families.llama import BASE, SIZED, THETA, extras, key_heads, layers, plain, rotary
from tasks.weights.families.naming import Config, Naming, demand, demand_equal
from tasks.weights.ops import Rotary
from tasks.weights.rules import Rule

NAME, ARCHITECTURE = "gguf-llama", "llama"
HEAD, FACTORS = "output.weight", "rope_freqs.weight"
FIELDS = {  # GGUF's key -> transformers'
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.dimension_count": "head_dim",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
EPSILON, TOKENS = "attention.layer_norm_rms_epsilon", "tokenizer.ggml.tokens"
HEADS, TURNED = "attention.head_count_kv", "rope.dimension_count"
KEYS, VALUES = "attention.key_length", "attention.value_length"  # of one head
DERIVED = (HEADS, TURNED)  # llama.cpp derives them where a file leaves them out
UNSCALED = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 1.0}
SPECIAL = {  # GGUF's tokenizer key -> transformers'
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "padding_token_id": "pad_token_id",
}
LAYER = {  # llama.cpp's names -> transformers'
    "attn_norm": "input_layernorm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _rules(config: Config) -> tuple[Rule, ...]:
    heads = {"q": config["num_attention_heads"], "k": key_heads(config)}
    head = () if config.get("tie_word_embeddings") else (Rule(HEAD, "lm_head.weight"),)
    return (
        Rule("token_embd.weight", "model.embed_tokens.weight"),
        Rule("output_norm.weight", "model.norm.weight"),
        *head,
        *(
            Rule(f"blk.{{n}}.{ours}.weight", f"model.layers.{{n}}.{theirs}.weight")
            for ours, theirs in LAYER.items()
        ),
        *(
            Rule(
                f"blk.{{n}}.attn_{name}.weight",
                f"model.layers.{{n}}.self_attn.{name}_proj.weight",
                Rotary(count),
            )
            for name, count in heads.items()
        ),
    )


def _config(given: Config) -> dict[str, Any]:
    """transformers' config of the file's metadata; a file without a head of its own ties it.

    Raises CheckpointError for another architecture, and for rotary frequencies that are scaled.
    """
    kind = given.get("general.architecture")
    if kind != ARCHITECTURE:
        raise CheckpointError(f"general.architecture is {kind!r}: this table is for {ARCHITECTURE!r}")
    tensors = given.get("tensors", (HEAD,))
    if FACTORS in tensors:
        raise CheckpointError(
            f"{FACTORS} scales the rotary frequencies, as Llama 3.1 and later do, and this table has no "
            "words for that: convert the checkpoint that the file was made from"
        )
    found = _fields(given)
    return {
        **found,
        **{theirs: given.get(f"tokenizer.ggml.{ours}") for ours, theirs in SPECIAL.items()},
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_parameters": rotary(given.get("llama.rope.freq_base") or THETA),
        "tie_word_embeddings": HEAD not in tensors,
    }


def _fields(given: Config) -> dict[str, Any]:
    """The sizes, with what llama.cpp takes for those that a file leaves out.

    Raises CheckpointError with all that are missing or none, and with all that this table has no words for.
    """
    ours = {name.removeprefix("llama."): value for name, value in given.items() if name.startswith("llama.")}
    ours.setdefault("vocab_size", len(given.get(TOKENS, ())) or None)
    needed = [name for name in FIELDS if name not in DERIVED]
    sizes = [name for name in FIELDS if name != EPSILON]
    demand(ours, NAME, *needed, sizes=(*sizes, KEYS, VALUES), numbers=(EPSILON, "rope.freq_base"))
    width = ours["embedding_length"] // ours["attention.head_count"]
    derived = {HEADS: ours["attention.head_count"], VALUES: width, TURNED: ours.get(KEYS, width)}
    full = {**UNSCALED, **derived, **ours}
    demand_equal(full, NAME, {**UNSCALED, VALUES: full.get(KEYS, width), TURNED: full.get(KEYS, width)})
    return {theirs: full[name] for name, theirs in FIELDS.items()}


def _back(config: Config) -> dict[str, Any]:
    full = plain(config, NAME)
    return {
        "general.architecture": ARCHITECTURE,
        **{f"llama.{ours}": full[theirs] for ours, theirs in FIELDS.items()},
        "llama.rope.freq_base": full["rope_theta"],
    }


GGUF_LLAMA = Naming(
    name=NAME,
    architecture="LlamaForCausalLM",
    theirs=SIZED,
    rules=_rules,
    numbers=layers,
    config=_config,
    back=_back,
    accepts=extras,
    base=BASE,
)
