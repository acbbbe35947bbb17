"""What stands on a model's last hidden states: a table of transformers' classes and ours, each with its head.

A head is a function of single states: which of a row's positions it reads is told by `Rows.read`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tasks import architectures
from tasks.errors import TrainingError, did_you_mean


@dataclass(frozen=True)
class Head:
    """paths: of its modules, dropout included. logits(model, states): (read, width) -> (read, outputs), the
    class's own arithmetic. read: of a row's states the one that is read, `first` or `last`, or the `mean`;
    `each` where the rows tell the positions.
    """

    paths: tuple[str, ...]
    logits: Callable[[Any, Tensor], Tensor]
    read: str = "each"


def head_of(model: PreTrainedModel) -> Head:
    """Raises TrainingError for a class that is not in HEADS."""
    name = type(model).__name__
    if name not in HEADS:
        raise TrainingError(f"{name} cannot be fine-tuned: no head of that name is known; "
                            f"{did_you_mean(name, HEADS)}")  # fmt: skip
    return HEADS[name]


def _bert(model: Any, first: Tensor) -> Tensor:
    pooled = model.bert.pooler(first[:, None])  # (batch, 1, width) -> (batch, width)
    logits: Tensor = model.classifier(model.dropout(pooled))
    return logits


def _distilbert(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(model.dropout(torch.relu(model.pre_classifier(first))))
    return logits


def _roberta(model: Any, first: Tensor) -> Tensor:
    logits: Tensor = model.classifier(first[:, None])
    return logits


def _distilbert_words(model: Any, states: Tensor) -> Tensor:
    transformed = model.vocab_layer_norm(model.activation(model.vocab_transform(states)))
    logits: Tensor = model.vocab_projector(transformed)
    return logits


def _t5(model: Any, states: Tensor) -> Tensor:
    scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
    logits: Tensor = model.lm_head(states * scale)
    return logits


def _through(*paths: str, read: str = "each") -> Head:
    """A head whose modules stand one behind the other."""

    def logits(model: Any, states: Tensor) -> Tensor:
        for path in paths:
            states = attrgetter(path)(model)(states)
        return states

    return Head(paths, logits, read)


TAGS = _through("dropout", "classifier")
HEADS: Mapping[str, Head] = {
    "BertForSequenceClassification": Head(("bert.pooler", "dropout", "classifier"), _bert, "first"),
    "RobertaForSequenceClassification": Head(("classifier",), _roberta, "first"),
    "DistilBertForSequenceClassification": Head(
        ("pre_classifier", "dropout", "classifier"), _distilbert, "first"
    ),
    "GPT2ForSequenceClassification": _through("score", read="last"),
    "LlamaForSequenceClassification": _through("score", read="last"),
    "MixtralForSequenceClassification": _through("score", read="last"),
    "BertForTokenClassification": TAGS,
    "RobertaForTokenClassification": TAGS,
    "DistilBertForTokenClassification": TAGS,
    "GPT2ForTokenClassification": TAGS,
    "LlamaForTokenClassification": _through("dropout", "score"),
    "MixtralForTokenClassification": _through("dropout", "score"),
    "BertForQuestionAnswering": _through("qa_outputs"),
    "RobertaForQuestionAnswering": _through("qa_outputs"),
    "DistilBertForQuestionAnswering": _through("dropout", "qa_outputs"),
    "BertForMaskedLM": _through("cls"),
    "RobertaForMaskedLM": _through("lm_head"),
    "DistilBertForMaskedLM": Head(
        ("vocab_transform", "vocab_layer_norm", "vocab_projector"), _distilbert_words
    ),
    "GPT2LMHeadModel": _through("lm_head"),
    "LlamaForCausalLM": _through("lm_head"),
    "MixtralForCausalLM": _through("lm_head"),
    "T5ForConditionalGeneration": Head(("lm_head",), _t5),
    **dict.fromkeys(architectures.CLASSES, _through("dropout", "mean_classifier", read="mean")),
}
