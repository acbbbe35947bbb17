"""The encoders of our classifiers as whole checkpoints: old names mended, pretraining heads left out."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from tasks.weights.families.bert import BERT
from tasks.weights.families.distilbert import DISTILBERT
from tasks.weights.families.family import BUFFER, Family
from tasks.weights.families.naming import Config, Naming
from tasks.weights.families.roberta import ROBERTA
from tasks.weights.rules import DROP, Rule

DEPTH = ("num_hidden_layers", "n_layers")


def _numbers(config: Config) -> Mapping[str, Iterable[int]]:
    return {"n": range(next(config[name] for name in DEPTH if name in config))}


def _same(config: Config) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("tensors", "architectures")}


def _naming(family: Family, architecture: str) -> Naming:
    kept = tuple(rule for rule in family.encoder if rule.keeps and rule.source == rule.target)
    others = tuple(rule for rule in family.encoder if rule not in kept)
    more = (*_variants(family, kept, others), *family.dropped)
    return Naming(
        name=family.name,
        architecture=architecture,
        rules=lambda config: kept,
        numbers=_numbers,
        config=_same,
        back=_same,
        drops=lambda config: more,
        accepts=lambda config: tuple(rule for rule in more if not rule.keeps),
    )


def _variants(family: Family, kept: tuple[Rule, ...], others: tuple[Rule, ...]) -> Iterator[Rule]:
    """The same tensors below the prefix that a model with a head gives them, old names, and buffers."""
    for prefix, rules in (("", others), (family.base, (*kept, *others))):
        yield from (
            replace(rule, source=f"{prefix}{rule.source}", reason=rule.reason or "prefix") for rule in rules
        )
        for name in family.buffers:
            yield Rule(f"{prefix}{name}", None, DROP, BUFFER, function="exact")


BERT_ENCODER = _naming(BERT, "BertModel")
DISTILBERT_ENCODER = _naming(DISTILBERT, "DistilBertModel")
ROBERTA_ENCODER = _naming(ROBERTA, "RobertaModel")
