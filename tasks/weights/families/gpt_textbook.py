"""GPT-2 under the names of textbooks and courses: blocks, tok_emb, fc1.

One naming for each way to hold queries, keys and values: in one torch.nn.Linear, in three, or in one with
the transposed layout of transformers' Conv1D.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tasks.weights.families.gpt2 import (
    BASE,
    DEFAULTS,
    EMBEDDING,
    HEAD,
    PLAIN,
    SIZED,
    biased,
    extras,
    from_sizes,
    layers,
    sizes,
    tied,
)
from tasks.weights.families.naming import Config, Naming, buffers, demand_equal, lacks
from tasks.weights.ops import Concatenate, Op
from tasks.weights.rules import TRANSPOSE, Rule

BLOCK = "blocks.{n}."
LAYER = "transformer.h.{n}."
OPTIONS: Mapping[str, Any] = {  # what its config may say, else what textbooks do: GELU by its error function
    "n_inner": None,
    "activation_function": "gelu",
    "layer_norm_epsilon": 1e-5,
}
Attention = Callable[[Config], tuple[Rule, ...]]


def _ends(config: Config) -> tuple[Rule, ...]:
    """Embeddings, the last norm and the head."""
    head = () if tied(config) else (Rule(HEAD, HEAD),)
    return (
        Rule("tok_emb.weight", EMBEDDING),
        Rule("pos_emb.weight", "transformer.wpe.weight"),
        biased("ln_f", "transformer.ln_f", config),
        *head,
    )


def _block(config: Config, *ops: Op) -> tuple[Rule, ...]:
    """Norms and feed-forward of each block."""
    return (
        biased(f"{BLOCK}ln1", f"{LAYER}ln_1", config),
        biased(f"{BLOCK}ln2", f"{LAYER}ln_2", config),
        biased(f"{BLOCK}mlp.fc1", f"{LAYER}mlp.c_fc", config, *ops),
        biased(f"{BLOCK}mlp.fc2", f"{LAYER}mlp.c_proj", config, *ops),
    )


def _fused(config: Config, *ops: Op) -> tuple[Rule, ...]:
    return (
        biased(f"{BLOCK}attn.c_attn", f"{LAYER}attn.c_attn", config, *ops),
        biased(f"{BLOCK}attn.c_proj", f"{LAYER}attn.c_proj", config, *ops),
    )


def _linear(config: Config) -> tuple[Rule, ...]:
    return (*_ends(config), *_block(config, TRANSPOSE), *_fused(config, TRANSPOSE))


def _split(config: Config) -> tuple[Rule, ...]:
    three = tuple(f"{BLOCK}attn.{name}" for name in "qkv")
    merged = Concatenate((config["n_embd"],) * 3)
    return (
        *_ends(config),
        *_block(config, TRANSPOSE),
        biased(three, f"{LAYER}attn.c_attn", config, merged, TRANSPOSE),
        biased(f"{BLOCK}attn.proj", f"{LAYER}attn.c_proj", config, TRANSPOSE),
    )


def _conv1d(config: Config) -> tuple[Rule, ...]:
    return (*_ends(config), *_block(config), *_fused(config))


def _drops(config: Config) -> tuple[Rule, ...]:
    return buffers(f"{BLOCK}attn.{{b:bias|masked_bias|mask}}")


def _twins(config: Config) -> Mapping[str, str]:
    return {HEAD: "tok_emb.weight"} if tied(config) else {}


def _config(given: Config) -> dict[str, Any]:
    """Tied, where the config does not say, if there is no head in the checkpoint."""
    options = {key: given.get(key, value) for key, value in OPTIONS.items()}
    ties = given.get("tie_word_embeddings", lacks(given, HEAD))
    return from_sizes(given, "gpt-textbook", **options, tie_word_embeddings=ties)


def _back(config: Config) -> dict[str, Any]:
    full = {**DEFAULTS, **SIZED.checked(config)}
    demand_equal(full, "gpt-textbook", PLAIN)
    options = {key: full[key] for key in OPTIONS}
    return {**sizes(config), **options, "tie_word_embeddings": full["tie_word_embeddings"]}


def _textbook(name: str, rules: Attention) -> Naming:
    return Naming(
        name=name,
        architecture="GPT2LMHeadModel",
        theirs=SIZED,
        rules=rules,
        numbers=layers,
        config=_config,
        back=_back,
        drops=_drops,
        accepts=extras,
        twins=_twins,
        base=BASE,
    )


GPT_TEXTBOOK = _textbook("gpt-textbook", _linear)
GPT_TEXTBOOK_SPLIT = _textbook("gpt-textbook-split", _split)
GPT_TEXTBOOK_CONV1D = _textbook("gpt-textbook-conv1d", _conv1d)
