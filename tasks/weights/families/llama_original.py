"""Llama under the names of Meta's own checkpoints, in one file or in several with a part of every tensor.

Names, the width of the feed-forward layer, what is divided: model.py of github.com/meta-llama/llama and of
llama3 beside it; fields: params.json.
"""

from collections.abc import Mapping
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.families.llama import (
    BASE,
    DEFAULTS,
    OURS,
    SIZED,
    SIZES,
    THETA,
    described,
    extras,
    key_heads,
    layers,
    plain,
    rotary,
    rules,
    sizes,
)
from tasks.weights.families.naming import Config, Naming, buffers, demand
from tasks.weights.families.parallel import joined
from tasks.weights.ops import Shape
from tasks.weights.rules import Rule

WORDS = "tok_embeddings.weight"
DIVIDED = {  # ColumnParallelLinear divides rows, RowParallelLinear columns: axis, and what it is the size of
    f"{OURS}attention.wq.weight": (0, "hidden_size"),
    f"{OURS}attention.wk.weight": (0, "keys"),
    f"{OURS}attention.wv.weight": (0, "keys"),
    f"{OURS}attention.wo.weight": (1, "hidden_size"),
    f"{OURS}feed_forward.w1.weight": (0, "intermediate_size"),
    f"{OURS}feed_forward.w2.weight": (1, "intermediate_size"),
    f"{OURS}feed_forward.w3.weight": (0, "intermediate_size"),
    "output.weight": (0, "vocab_size"),
}


def _config(given: Config) -> dict[str, Any]:
    """Of params.json, which does not hold the longest text: `max_seq_len`, 2048 where nobody adds it."""
    if given.get("vocab_size") == -1:  # in Llama's and Llama 2's params.json: the tokenizer knows
        raise CheckpointError("vocab_size is -1: set it to the number of rows of tok_embeddings.weight")
    demand(
        given,
        "llama-original",
        *(*SIZES, "multiple_of", "norm_eps"),
        sizes=(*SIZES, "n_kv_heads", "multiple_of", "max_seq_len"),
        numbers=("norm_eps", "rope_theta", "ffn_dim_multiplier"),
    )
    if given.get("use_scaled_rope"):
        raise CheckpointError("use_scaled_rope: its factors are not in params.json, so they are not guessed")
    return described(
        given,
        intermediate_size=_intermediate(given),
        rms_norm_eps=given["norm_eps"],
        max_position_embeddings=given.get("max_seq_len") or DEFAULTS["max_position_embeddings"],
        rope_parameters=rotary(given.get("rope_theta") or THETA),
        bos_token_id=None,
        eos_token_id=None,
    )


def _intermediate(given: Config) -> int:
    """Two thirds of four times the width, times a factor, up to a multiple."""
    hidden, step = 2 * 4 * given["dim"] // 3, given["multiple_of"]
    hidden = int((given.get("ffn_dim_multiplier") or 1) * hidden)
    return int(-(-hidden // step) * step)


def _back(config: Config) -> dict[str, Any]:
    """With the width itself for the multiple, and a factor where two thirds would be more than it.

    The factor aims half a unit above the width, which `int` takes away again whatever was rounded.
    """
    full = plain(config, "llama-original")
    inner = full["intermediate_size"]
    return {
        **sizes(full),
        "multiple_of": inner,
        "ffn_dim_multiplier": min(1.0, (inner + 0.5) / (2 * 4 * full["hidden_size"] // 3)),
        "norm_eps": full["rms_norm_eps"],
        "rope_theta": full["rope_theta"],
        "max_seq_len": full["max_position_embeddings"],
    }


def _drops(config: Config) -> tuple[Rule, ...]:
    return buffers("rope.freqs")


def _joins(config: Config, shapes: Mapping[str, Shape], parts: int) -> tuple[Rule, ...]:
    whole = {**config, "keys": key_heads(config) * config["head_dim"]}
    divided = {name: (axis, whole[field]) for name, (axis, field) in DIVIDED.items()}
    divided[WORDS] = _divided_words(config, shapes, parts)
    return joined([*rules(config), *_drops(config)], divided, parts)


def _divided_words(config: Config, shapes: Mapping[str, Shape], parts: int) -> tuple[int, int]:
    """The axis of the embedding that is divided, and its size.

    params.json does not say it, so it is the axis that is not whole: Llama and Llama 2 divide the width,
    Llama 3 the vocabulary. Raises CheckpointError where it is neither.
    """
    rows, width = config["vocab_size"], config["hidden_size"]
    known = {(rows, width / parts): (1, width), (rows / parts, width): (0, rows)}
    found = shapes.get(f"0:{WORDS}", (rows, width / parts))
    if found not in known:
        raise CheckpointError(
            f"{WORDS} is {found} in each of {parts} files: with vocab_size {rows} and dim {width} that is a "
            "part neither of its columns, as Llama 2 divides it, nor of its rows, as Llama 3 does: mend "
            "params.json"
        )
    return known[found]


LLAMA_ORIGINAL = Naming(
    name="llama-original",
    architecture="LlamaForCausalLM",
    theirs=SIZED,
    rules=rules,
    numbers=layers,
    config=_config,
    back=_back,
    drops=_drops,
    accepts=extras,
    joins=_joins,
    base=BASE,
)
