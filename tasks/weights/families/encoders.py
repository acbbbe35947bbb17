"""The encoders of our classifiers as whole checkpoints: old names mended, pretraining heads left out."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from tasks.weights.families.axes import Axes, Width, completed, embedding, linear, norm, together
from tasks.weights.families.bert import BERT
from tasks.weights.families.distilbert import DISTILBERT
from tasks.weights.families.family import MASKED, PRETRAINING, Encoder, same, unused
from tasks.weights.families.naming import Config, Description, Naming, buffers
from tasks.weights.families.roberta import ROBERTA
from tasks.weights.rules import Rule

PLACES = ("vocab_size", "max_position_embeddings")
BERTS = ("hidden_size", "intermediate_size", "num_attention_heads", "type_vocab_size", *PLACES)
DISTILS = ("dim", "hidden_dim", "n_heads", *PLACES)

BERT_DEFAULTS = {  # what transformers takes for a field that config.json leaves out
    "vocab_size": 30522,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
DISTILBERT_DEFAULTS = {
    "vocab_size": 30522,
    "dim": 768,
    "hidden_dim": 3072,
    "n_heads": 12,
    "max_position_embeddings": 512,
}
LAYER, BLOCK = "encoder.layer.{n}.", "transformer.layer.{n}."
BERT_AXES = Axes(
    layouts=together(
        (
            embedding("embeddings.word_embeddings", "vocabulary"),
            embedding("embeddings.position_embeddings", "positions"),
            embedding("embeddings.token_type_embeddings", "types"),
            norm("embeddings.LayerNorm"),
            norm(f"{LAYER}{{m:attention.output|output}}.LayerNorm"),
            linear(f"{LAYER}attention.self.{{m:query|key|value}}", "heads", "hidden"),
            linear(f"{LAYER}attention.output.dense", "hidden", "heads"),
            linear(f"{LAYER}intermediate.dense", "inner", "hidden"),
            linear(f"{LAYER}output.dense", "hidden", "inner"),
            linear("pooler.dense", "hidden", "hidden"),
        )
    ),
    fields={
        "vocabulary": ("vocab_size",),
        "positions": ("max_position_embeddings",),
        "types": ("type_vocab_size",),
        "hidden": ("hidden_size",),
        "heads": ("hidden_size",),
        "inner": ("intermediate_size",),
    },
    full=lambda config: completed(config, BERT_DEFAULTS),
    width=Width("hidden_size", "num_attention_heads", "intermediate_size"),
)
ROBERTA_AXES = replace(
    BERT_AXES, full=lambda config: completed(config, {**BERT_DEFAULTS, "vocab_size": 50265})
)
DISTILBERT_AXES = Axes(
    layouts=together(
        (
            embedding("embeddings.word_embeddings", "vocabulary"),
            embedding("embeddings.position_embeddings", "positions"),
            norm("embeddings.LayerNorm"),
            norm(f"{BLOCK}{{m:sa|output}}_layer_norm"),
            linear(f"{BLOCK}attention.{{m:q|k|v}}_lin", "heads", "hidden"),
            linear(f"{BLOCK}attention.out_lin", "hidden", "heads"),
            linear(f"{BLOCK}ffn.lin1", "inner", "hidden"),
            linear(f"{BLOCK}ffn.lin2", "hidden", "inner"),
        )
    ),
    fields={
        "vocabulary": ("vocab_size",),
        "positions": ("max_position_embeddings",),
        "hidden": ("dim",),
        "heads": ("dim",),
        "inner": ("hidden_dim",),
    },
    full=lambda config: completed(config, DISTILBERT_DEFAULTS),
    width=Width("dim", "n_heads", "hidden_dim"),
)


def _naming(family: Encoder, architecture: str, depth: str, sizes: tuple[str, ...]) -> Naming:
    """depth: the field of its config that counts the layers. sizes: the other fields that are sizes."""
    theirs = Description(family.name, needed=(depth,), optional=sizes)
    whole = (*family.encoder, *same(*family.pooler))
    kept = tuple(rule for rule in whole if rule.source == rule.target)
    others = tuple(rule for rule in whole if rule not in kept)
    heads = (*family.heads[MASKED].templates, *family.pretraining)
    more = (*_variants(family, kept, others), *unused(PRETRAINING, *heads))
    return Naming(
        name=family.name,
        architecture=architecture,
        theirs=theirs,
        rules=lambda config: kept,
        numbers=lambda config: {"n": range(config[depth])},
        config=partial(_described, theirs),
        back=partial(_described, theirs),
        drops=lambda config: more,
        accepts=lambda config: tuple(rule for rule in more if not rule.keeps),
    )


def _described(theirs: Description, config: Config) -> dict[str, Any]:
    """Without the class: the encoder alone is written."""
    return {field: value for field, value in theirs.checked(config).items() if field != "architectures"}


def _variants(family: Encoder, kept: tuple[Rule, ...], others: tuple[Rule, ...]) -> Iterator[Rule]:
    """The same tensors below the prefix that a model with a head gives them, old names, and buffers."""
    for prefix, rules in (("", others), (family.base, (*kept, *others))):
        yield from (
            replace(rule, source=f"{prefix}{rule.source}", reason=rule.reason or "prefix") for rule in rules
        )
        yield from buffers(*(f"{prefix}{name}" for name in family.buffers))


BERT_ENCODER = _naming(BERT, "BertModel", "num_hidden_layers", BERTS)
DISTILBERT_ENCODER = _naming(DISTILBERT, "DistilBertModel", "n_layers", DISTILS)
ROBERTA_ENCODER = _naming(ROBERTA, "RobertaModel", "num_hidden_layers", BERTS)
