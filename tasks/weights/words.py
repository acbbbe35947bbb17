"""What the words in tensors' names say; what no list knows is "other".

A name is read as words, `self_attn.q_proj` as self, attn, q, proj. The words are those of transformers, timm,
llama.cpp, llama2.c and PyTorch's own modules.
"""

import re
from collections.abc import Sequence

Lists = Sequence[tuple[str, tuple[str, ...]]]

EMBEDDINGS, LAYER, NORM, POOLER, HEAD, OTHER = "embeddings", "layer", "norm", "pooler", "head", "other"
ORDER = (EMBEDDINGS, LAYER, NORM, POOLER, HEAD, OTHER)  # as data goes through a model
NORMS = (NORM, "norms", "layernorm", "layrnorm", "rmsnorm", "batchnorm", "groupnorm", "ln", "bn")
FLOORS: Lists = (  # of what is in no layer; the first list that knows a name has it
    (HEAD, ("embed out", "lm head")),
    (
        EMBEDDINGS,
        ("embed", "embeds", "embedding", "embeddings", "emb", "embs", "embd", "wte", "wpe", "shared", "rope",
         "freq", "freqs", "cls token", "dist token", "mask token"),
    ),
    (POOLER, ("pooler", "pooling")),
    (
        HEAD,
        ("head", "heads", "classifier", "classification", "cls", "output weight", "output bias", "score",
         "vocab", "qa outputs", "predictions", "generator", "logits", "proj out", "fc", "prediction"),
    ),
    (NORM, NORMS),
)  # fmt: skip
PARTS: Lists = (  # of a layer
    (NORM, NORMS),
    ("attention", ("attn", "attention", "attentions", "att", "qkv", "wqkv", "query key value")),
    ("state space", ("mamba", "mixer", "ssm")),
    ("feed-forward", ("gate proj", "gate up", "expert gate")),
    ("router", ("router", "moe gate", "mlp gate", "gate inp")),
    (
        "feed-forward",
        ("mlp", "ffn", "ffns", "ff", "fc", "feed forward", "feedforward", "intermediate", "output", "moe",
         "experts", "expert", "dense relu dense", "lin", "linear"),
    ),
    ("attention", ("q proj", "k proj", "v proj", "o proj", "out proj", "q lin", "k lin", "v lin", "out lin")),
    ("convolution", ("conv", "convs", "convolution")),
)  # fmt: skip
FLOW: Lists = (  # within a part
    ("first", ("word", "wte", "tok", "embed tokens", "token embd", "query", "q", "wq", "gate", "w 1")),
    ("second", ("position", "positions", "pos", "wpe", "key", "k", "wk", "up", "w 3")),
    ("third", ("token type", "value", "v", "wv")),
    (OTHER, ()),
)
LAYERS = {"layer", "layers", "h", "block", "blocks", "blk", "resblocks", "groups"}  # before a layer's number

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def split(name: str) -> list[str]:
    """The words of a name in lower case: LayerNorm is layer and norm, ln_1 is ln and 1."""
    return [word.lower() for word in WORD.findall(name)]


def known(name: str, lists: Lists) -> str:
    """The first of `lists` that holds a word of `name`, or words that follow one another in it."""
    words = f" {' '.join(split(name))} "
    return next((kind for kind, listed in lists if any(f" {word} " in words for word in listed)), OTHER)
