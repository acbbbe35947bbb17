"""llama2.c: Meta's names for the tensors of its files, and a description in seven numbers.

Fields: `Config` of run.c, github.com/karpathy/llama2.c; what they leave out is fixed in its code.
"""

from typing import Any

from tasks.weights.families.family import tie
from tasks.weights.families.llama import (
    BASE,
    SIZED,
    SIZES,
    THETA,
    described,
    extras,
    layers,
    plain,
    rotary,
    rules,
    sizes,
)
from tasks.weights.families.naming import Config, Naming, buffers, demand, demand_equal
from tasks.weights.rules import Rule

EPSILON = 1e-5  # rmsnorm of run.c


def _drops(config: Config) -> tuple[Rule, ...]:
    found = buffers("freqs.{f:cos|sin}", "layers.{n}.attention.mask")
    shared = config.get("tie_word_embeddings")
    return (*found, tie("output.weight", "tok_embeddings.weight")) if shared else found


def _config(given: Config) -> dict[str, Any]:
    needed = (*SIZES, "hidden_dim", "seq_len")
    demand(given, "llama2c", *needed, sizes=(*needed, "n_kv_heads"))
    return described(
        given,
        intermediate_size=given["hidden_dim"],
        rms_norm_eps=EPSILON,
        max_position_embeddings=given["seq_len"],
        rope_parameters=rotary(THETA),
        bos_token_id=1,  # of its sentencepiece tokenizer
        eos_token_id=2,
    )


def _back(config: Config) -> dict[str, Any]:
    full = plain(config, "llama2c")
    demand_equal(full, "llama2c", {"rms_norm_eps": EPSILON, "rope_theta": THETA})
    return {
        **sizes(full),
        "hidden_dim": full["intermediate_size"],
        "seq_len": full["max_position_embeddings"],
        "shared_classifier": full["tie_word_embeddings"],
    }


LLAMA2C = Naming(
    name="llama2c",
    architecture="LlamaForCausalLM",
    theirs=SIZED,
    rules=rules,
    numbers=layers,
    config=_config,
    back=_back,
    drops=_drops,
    accepts=extras,
    base=BASE,
)
