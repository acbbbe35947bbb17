"""Every family of checkpoints that we can explain: one table a file, one line here."""

from collections.abc import Mapping

from tasks.errors import CheckpointError, did_you_mean
from tasks.weights.families import decoders
from tasks.weights.families.axes import Axes as Axes
from tasks.weights.families.bert import BERT
from tasks.weights.families.distilbert import DISTILBERT
from tasks.weights.families.encoders import (
    BERT_AXES,
    BERT_ENCODER,
    DISTILBERT_AXES,
    DISTILBERT_ENCODER,
    ROBERTA_AXES,
    ROBERTA_ENCODER,
)
from tasks.weights.families.family import Family as Family
from tasks.weights.families.gguf import GGUF_LLAMA
from tasks.weights.families.gpt2 import AXES as GPT2_AXES
from tasks.weights.families.gpt2 import BLOCKS as GPT2_BLOCKS
from tasks.weights.families.gpt2 import GPT2
from tasks.weights.families.gpt_textbook import GPT_TEXTBOOK, GPT_TEXTBOOK_CONV1D, GPT_TEXTBOOK_SPLIT
from tasks.weights.families.kernels import FLAX_BERT, FLAX_GPT2, TF_BERT
from tasks.weights.families.llama import AXES as LLAMA_AXES
from tasks.weights.families.llama import BLOCKS as LLAMA_BLOCKS
from tasks.weights.families.llama import LLAMA
from tasks.weights.families.llama2c import LLAMA2C
from tasks.weights.families.llama_original import LLAMA_ORIGINAL
from tasks.weights.families.mixtral import MIXTRAL
from tasks.weights.families.mixtral import Sparse as Sparse
from tasks.weights.families.naming import Blocks as Blocks
from tasks.weights.families.naming import Naming as Naming
from tasks.weights.families.nanogpt import NANOGPT
from tasks.weights.families.roberta import ROBERTA
from tasks.weights.families.t5 import AXES as T5_AXES
from tasks.weights.families.t5 import T5

BORROWED = "transformers"  # not a table of ours: whichever transformers ships for the model
FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        BERT,
        DISTILBERT,
        ROBERTA,
        decoders.GPT2,
        decoders.LLAMA,
        decoders.MIXTRAL,
        decoders.T5,
    )
}
NAMINGS: Mapping[str, Naming] = {
    naming.name: naming
    for naming in (
        GPT2,
        GPT_TEXTBOOK,
        GPT_TEXTBOOK_SPLIT,
        GPT_TEXTBOOK_CONV1D,
        NANOGPT,
        LLAMA,
        LLAMA_ORIGINAL,
        LLAMA2C,
        GGUF_LLAMA,
        T5,
        BERT_ENCODER,
        DISTILBERT_ENCODER,
        ROBERTA_ENCODER,
        FLAX_BERT,
        FLAX_GPT2,
        TF_BERT,
    )
}
BLOCKS: Mapping[str, Blocks] = {  # transformers' class -> its layers
    "GPT2LMHeadModel": GPT2_BLOCKS,
    "LlamaForCausalLM": LLAMA_BLOCKS,
    "BertModel": Blocks("num_hidden_layers"),
    "RobertaModel": Blocks("num_hidden_layers"),
    "DistilBertModel": Blocks("n_layers"),
}

AXES: Mapping[str, Axes] = {  # transformers' class -> what the dimensions of its tensors are
    "GPT2LMHeadModel": GPT2_AXES,
    "LlamaForCausalLM": LLAMA_AXES,
    "T5ForConditionalGeneration": T5_AXES,
    "BertModel": BERT_AXES,
    "RobertaModel": ROBERTA_AXES,
    "DistilBertModel": DISTILBERT_AXES,
}


SPARSE: Mapping[str, Sparse] = {"LlamaForCausalLM": MIXTRAL}  # transformers' class -> the one with experts


def find(model_type: str | None, *, family: str = "auto") -> Family:
    """The table for a config's `model_type`, or the one named by `family`.

    Raises CheckpointError for a name without a table, and for none.
    """
    name = model_type if family == "auto" else family
    if name is None:
        raise CheckpointError(
            "config.json has no model_type: copy the one that belongs to these weights, or name "
            "conversion.family"
        )
    if name not in FAMILIES:
        raise CheckpointError(
            f"no rule table for checkpoints of type {name!r}; {did_you_mean(name, FAMILIES)}"
        )
    return FAMILIES[name]


def find_naming(name: str) -> Naming:
    """The table between `name`'s tensor names and transformers'.

    Raises CheckpointError for a name without a table.
    """
    if name not in NAMINGS:
        raise CheckpointError(f"no naming is called {name!r}; {did_you_mean(name, (*NAMINGS, BORROWED))}")
    return NAMINGS[name]


def find_blocks(architecture: str) -> Blocks:
    """How transformers' class `architecture` numbers its layers.

    Raises CheckpointError for a class whose layers are no single row.
    """
    if architecture not in BLOCKS:
        raise CheckpointError(
            f"layers of {architecture} cannot be chosen: convert it whole; known: {', '.join(sorted(BLOCKS))}"
        )
    return BLOCKS[architecture]


def find_sparse(architecture: str) -> Sparse:
    """The class that has experts where transformers' class `architecture` has one feed-forward network.

    Raises CheckpointError for a class without such a relative.
    """
    if architecture not in SPARSE:
        raise CheckpointError(
            f"transformers has no class with experts that computes what {architecture} does: known are "
            f"those of {', '.join(sorted(SPARSE))}"
        )
    return SPARSE[architecture]
