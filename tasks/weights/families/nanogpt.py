"""nanoGPT: GPT-2's names with torch.nn.Linear, its head tied, its biases optional.

Names: model.py of github.com/karpathy/nanoGPT.
"""

from collections.abc import Mapping
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
)
from tasks.weights.families.naming import Config, Naming, buffers, demand_equal
from tasks.weights.rules import TRANSPOSE, Rule

LAYER = "transformer.h.{n}."
LINEAR = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
NORMS = ("transformer.ln_f", f"{LAYER}ln_1", f"{LAYER}ln_2")


def _rules(config: Config) -> tuple[Rule, ...]:
    embeddings = (EMBEDDING, "transformer.wpe.weight")
    return (
        *(Rule(name, name) for name in embeddings),
        *(biased(name, name, config) for name in NORMS),
        *(biased(f"{LAYER}{name}", f"{LAYER}{name}", config, TRANSPOSE) for name in LINEAR),
    )


def _drops(config: Config) -> tuple[Rule, ...]:
    return buffers(f"{LAYER}attn.bias")


def _twins(config: Config) -> Mapping[str, str]:
    return {HEAD: EMBEDDING}


def _config(given: Config) -> dict[str, Any]:
    """Of its `model_args`. A model of nanoGPT's first months, which computes gelu_new, says so in
    `activation_function`, there or beside them: its own files do not.
    """
    arguments = given.get("model_args", given)
    dropped = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), arguments.get("dropout", 0.0))
    activation = {**given, **arguments}.get("activation_function", "gelu")
    fixed = {"layer_norm_epsilon": 1e-5, "n_inner": None, "tie_word_embeddings": True}
    return from_sizes(arguments, "nanogpt", activation_function=activation, **dropped, **fixed)


def _back(config: Config) -> dict[str, Any]:
    full = {**DEFAULTS, **SIZED.checked(config)}
    inner = full["n_inner"] or 4 * full["n_embd"]
    fixed = {"layer_norm_epsilon": 1e-5, "n_inner": 4 * full["n_embd"], "tie_word_embeddings": True}
    demand_equal({**full, "n_inner": inner}, "nanogpt", {**PLAIN, "activation_function": "gelu", **fixed})
    return {"model_args": {**sizes(config), "dropout": full["resid_pdrop"]}}


NANOGPT = Naming(
    name="nanogpt",
    architecture="GPT2LMHeadModel",
    theirs=SIZED,
    rules=_rules,
    numbers=layers,
    config=_config,
    back=_back,
    drops=_drops,
    accepts=extras,
    twins=_twins,
    base=BASE,
)
