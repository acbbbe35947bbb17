"""GGUF files of Llama's kind (Llama, SmolLM2, TinyLlama): llama.cpp's names, and its order of rotary rows.

Names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.weights.families.naming import Config, Naming
from tasks.weights.ops import Rotary
from tasks.weights.rules import DROP, Rule

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
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    head = () if config["tie_word_embeddings"] else (Rule("output.weight", "lm_head.weight"),)
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


def _drops(config: Config) -> tuple[Rule, ...]:
    return (Rule("rope_freqs.weight", None, DROP, "a buffer: the model computes it", function="exact"),)


def _config(given: Config) -> dict[str, Any]:
    """transformers' config of the file's metadata; a file without a head of its own ties it."""
    found = {theirs: given[f"llama.{ours}"] for ours, theirs in FIELDS.items()}
    special = {theirs: given.get(f"tokenizer.ggml.{ours}") for ours, theirs in SPECIAL.items()}
    rope = {"rope_type": "default", "rope_theta": given["llama.rope.freq_base"]}
    tied = "output.weight" not in given["tensors"]
    return {
        **found,
        **special,
        "model_type": "llama",
        "hidden_act": "silu",
        "rope_parameters": rope,
        "tie_word_embeddings": tied,
    }


def _back(config: Config) -> dict[str, Any]:
    rope = config["rope_parameters"]["rope_theta"]
    return {
        "general.architecture": "llama",
        **{f"llama.{ours}": config[theirs] for ours, theirs in FIELDS.items()},
        "llama.rope.freq_base": rope,
    }


def _numbers(config: Config) -> Mapping[str, Iterable[int]]:
    return {"n": range(config["num_hidden_layers"])}


GGUF_LLAMA = Naming(
    name="gguf-llama",
    architecture="LlamaForCausalLM",
    rules=_rules,
    numbers=_numbers,
    config=_config,
    back=_back,
    drops=_drops,
)
