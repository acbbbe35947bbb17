"""GPT-2 (Radford et al., 2019) as transformers writes it, and what every other naming of it shares."""

from collections.abc import Iterable, Mapping
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.arithmetic import Biased
from tasks.weights.families.axes import Axes, Width, completed, conv1d, embedding, linear, norm, together
from tasks.weights.families.family import P, same, tie
from tasks.weights.families.naming import Blocks, Config, Description, Naming, buffers, demand
from tasks.weights.ops import Chain, Op
from tasks.weights.rules import KEEP, Rule

BASE, LAYER = "transformer.", "transformer.h.{n}."
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
DEFAULTS: Mapping[str, Any] = {  # what transformers takes for a field that config.json leaves out
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "n_inner": None,
    "resid_pdrop": 0.1,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
PLAIN = {  # attention as every other project computes it
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
CLOSING = (f"{LAYER}attn.c_proj.{P}", f"{LAYER}mlp.c_proj.{P}")
BLOCKS = Blocks("n_layer", CLOSING, numbered=("scale_attn_by_inverse_layer_idx",))
SIZES = {  # the name in minGPT, nanoGPT and their kin -> transformers'
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
INNER = "n_inner"  # of the feed-forward layer; None is four times n_embd
THEIRS = Description("gpt2", needed=("n_layer",), optional=(*SIZES.values(), INNER))
SIZED = Description("gpt2", needed=tuple(SIZES.values()), optional=(INNER,))  # others have no defaults


def _full(config: Config) -> dict[str, Any]:
    full = completed(config, DEFAULTS)
    return {**full, INNER: full[INNER] or 4 * full["n_embd"]}


AXES = Axes(
    layouts=together(
        (
            embedding("transformer.wte", "vocabulary"),
            embedding("transformer.wpe", "positions"),
            norm("transformer.ln_f"),
            norm(f"{LAYER}{{m:ln_1|ln_2}}"),
            conv1d(f"{LAYER}attn.c_attn", "hidden", "heads+heads+heads"),
            conv1d(f"{LAYER}attn.c_proj", "heads", "hidden"),
            conv1d(f"{LAYER}mlp.c_fc", "hidden", "inner"),
            conv1d(f"{LAYER}mlp.c_proj", "inner", "hidden"),
            linear("lm_head", "vocabulary", "hidden"),
        )
    ),
    fields={
        "vocabulary": ("vocab_size",),
        "positions": ("n_positions",),
        "hidden": ("n_embd",),
        "heads": ("n_embd",),
        "inner": (INNER,),
    },
    full=_full,
    width=Width("n_embd", "n_head", INNER, head=HEAD, embedding=EMBEDDING),
)


def layers(config: Config) -> Mapping[str, Iterable[int]]:
    return {"n": range(config["n_layer"])}


def tied(config: Config) -> bool:
    return bool(config.get("tie_word_embeddings", DEFAULTS["tie_word_embeddings"]))


def extras(config: Config) -> tuple[Rule, ...]:
    """What checkpoints of transformers' GPT-2 hold besides its parameters."""
    masks = buffers("transformer.h.{n}.attn.{b:bias|masked_bias}")
    return (*masks, tie(HEAD, EMBEDDING)) if tied(config) else masks


def biased(source: str | tuple[str, ...], target: str, config: Config, *ops: Op) -> Rule:
    """Weight and bias of a layer; a `bias` of false in the config: its weight, and the zeros GPT-2 adds.

    ops: make transformers' layout, in which a weight's last axis is that of the bias.
    """
    sources = (source,) if isinstance(source, str) else source
    if config.get("bias", True):
        return _rule(tuple(f"{name}.{P}" for name in sources), f"{target}.{P}", ops)
    return _rule(
        tuple(f"{name}.weight" for name in sources),
        (f"{target}.weight", f"{target}.bias"),
        (*ops, Biased(axis=-1)),
    )


def _rule(sources: tuple[str, ...], target: str | tuple[str, ...], ops: tuple[Op, ...]) -> Rule:
    op = Chain(ops) if len(ops) > 1 else ops[0] if ops else KEEP
    return Rule(sources[0] if len(sources) == 1 else sources, target, op)


def from_sizes(given: Config, naming: str, **fields: Any) -> dict[str, Any]:
    """transformers' config of a model whose sizes are `given`; `fields` besides.

    Raises CheckpointError with all sizes that are missing or none, and for a width that the heads do not
    divide.
    """
    demand(given, naming, *SIZES, sizes=(*SIZES, INNER), numbers=("layer_norm_epsilon",))
    if given["n_embd"] % given["n_head"]:
        raise CheckpointError(
            f"n_embd {given['n_embd']} does not divide into n_head {given['n_head']} heads: mend the config"
        )
    sizes = {theirs: given[ours] for ours, theirs in SIZES.items()}
    return {
        **sizes,
        **fields,
        "model_type": "gpt2",
        "bias": given.get("bias", True),
        "bos_token_id": None,
        "eos_token_id": None,
    }


def sizes(config: Config) -> dict[str, Any]:
    """Of transformers' config, in the other projects' words."""
    return {**{ours: config[theirs] for ours, theirs in SIZES.items()}, "bias": config.get("bias", True)}


def _rules(config: Config) -> tuple[Rule, ...]:
    head = () if tied(config) else same(HEAD)
    return (
        *same("transformer.{e:wte|wpe}.weight", f"transformer.ln_f.{P}"),
        *same(f"{LAYER}{{m:ln_1|ln_2}}.{P}", f"{LAYER}attn.c_attn.{P}", f"{LAYER}mlp.c_fc.{P}"),
        *same(*CLOSING),
        *head,
    )


GPT2 = Naming(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    theirs=THEIRS,
    rules=_rules,
    numbers=layers,
    config=THEIRS.checked,
    back=THEIRS.checked,
    drops=extras,
    accepts=extras,
    prefix=BASE,
    base=BASE,
)
