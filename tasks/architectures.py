"""Classifiers that read the mean of all tokens: classes of ours, since transformers has none.

Their configs bear model types of ours and their heads a name of ours, so that transformers refuses to take
them for its own: the same weights below a stock name would load without a word and answer otherwise. A served
model carries this module along, which needs torch and transformers alone.
"""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    DistilBertConfig,
    DistilBertModel,
    DistilBertPreTrainedModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    RobertaPreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

OURS = "regraft-mean-"  # before the model type of the layers


class MeanBertConfig(BertConfig):
    model_type = f"{OURS}bert"


class MeanDistilBertConfig(DistilBertConfig):
    model_type = f"{OURS}distilbert"


class MeanRobertaConfig(RobertaConfig):
    model_type = f"{OURS}roberta"


class MeanClassification(PreTrainedModel):
    """The head of the classes below: dropout and one dense layer, on the mean of the last hidden states."""

    def crown(self, config: Any, dropout: float) -> None:
        self.dropout = nn.Dropout(dropout)
        self.mean_classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **more: Any
    ) -> SequenceClassifierOutput:
        """input_ids, attention_mask: (batch, tokens); logits: (batch, labels)."""
        hidden = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **more)[0]
        mask = (
            torch.ones(hidden.shape[:2], device=hidden.device) if attention_mask is None else attention_mask
        )
        return SequenceClassifierOutput(logits=self.mean_classifier(self.dropout(mean(hidden, mask))))


class BertForMeanClassification(MeanClassification, BertPreTrainedModel):
    config_class = MeanBertConfig

    def __init__(self, config: MeanBertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.crown(config, _dropout(config))


class DistilBertForMeanClassification(MeanClassification, DistilBertPreTrainedModel):
    config_class = MeanDistilBertConfig

    def __init__(self, config: MeanDistilBertConfig) -> None:
        super().__init__(config)
        self.distilbert = DistilBertModel(config)
        self.crown(config, config.seq_classif_dropout)


class RobertaForMeanClassification(MeanClassification, RobertaPreTrainedModel):
    config_class = MeanRobertaConfig

    def __init__(self, config: MeanRobertaConfig) -> None:
        super().__init__(config)
        self.roberta = RobertaModel(config, add_pooling_layer=False)
        self.crown(config, _dropout(config))


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Of the tokens that there are: hidden (batch, tokens, width), mask (batch, tokens) -> (batch, width)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def find(name: str) -> Any:
    """The class of this name, ours or transformers'; None where neither has it."""
    return CLASSES.get(name) or getattr(transformers, name, None)


def configured(model_type: Any, **fields: Any) -> PretrainedConfig:
    """The config of this model type, ours or transformers', which refuses fields as it does."""
    own = CONFIGS.get(model_type)
    found: PretrainedConfig = own(**fields) if own else AutoConfig.for_model(model_type, **fields)
    return found


def body_type(model_type: str) -> str:
    """transformers' model type of the layers that a model of this type has."""
    return model_type.removeprefix(OURS)


def _dropout(config: Any) -> float:
    own = config.classifier_dropout
    return float(config.hidden_dropout_prob if own is None else own)


CLASSES: Mapping[str, type[MeanClassification]] = {
    one.__name__: one
    for one in (BertForMeanClassification, DistilBertForMeanClassification, RobertaForMeanClassification)
}
NAMES: Mapping[str, str] = {  # transformers' model type of the layers -> our class
    "bert": "BertForMeanClassification",
    "distilbert": "DistilBertForMeanClassification",
    "roberta": "RobertaForMeanClassification",
}
CONFIGS: Mapping[str, type[PretrainedConfig]] = {
    one.model_type: one for one in (MeanBertConfig, MeanDistilBertConfig, MeanRobertaConfig)
}
