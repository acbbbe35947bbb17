"""Tiny checkpoints in which no two dimensions are equal, so that nothing fits by chance."""

import json
import struct
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

from tasks import architectures
from tasks.weights import alignment, place, purposes, skeleton
from tasks.weights.alignment import Alignment, Word
from tasks.weights.families import find
from tasks.weights.formats import Checkpoint, open_checkpoint
from tasks.weights.plan import Plan, plan
from tasks.weights.rules import Rule

KINDS = {
    "base": AutoModel,
    "masked": AutoModelForMaskedLM,
    "classifier": AutoModelForSequenceClassification,
    "tagger": AutoModelForTokenClassification,
    "reader": AutoModelForQuestionAnswering,
    "writer": AutoModelForCausalLM,
    "translator": AutoModelForSeq2SeqLM,
}
DECODERS: dict[str, Callable[..., PretrainedConfig]] = {
    "gpt2": partial(
        GPT2Config, n_embd=24, n_inner=40, n_head=3, n_layer=2, n_positions=19, bos_token_id=1, eos_token_id=1
    ),
    "llama": partial(
        LlamaConfig, hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, max_position_embeddings=19, tie_word_embeddings=True,
    ),
    "mixtral": partial(
        MixtralConfig, hidden_size=24, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2,
        num_hidden_layers=2, max_position_embeddings=19, num_local_experts=3, num_experts_per_tok=2,
        tie_word_embeddings=True,
    ),
    "t5": partial(T5Config, d_model=24, d_kv=7, d_ff=40, num_layers=2, num_decoder_layers=3, num_heads=5),
}  # fmt: skip


def tiny_config(family: str, **fields: Any) -> PretrainedConfig:
    """Hidden 24, intermediate 40, 3 heads, 37 tokens, 19 positions, 2 layers."""
    if family in DECODERS:
        return DECODERS[family](vocab_size=37, **fields)
    if family == "distilbert":
        sizes = {"dim": 24, "hidden_dim": 40, "n_heads": 3, "n_layers": 2}
        return DistilBertConfig(**sizes, vocab_size=37, max_position_embeddings=19, **fields)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_hidden_layers": 2}
    kind = {"bert": BertConfig, "roberta": RobertaConfig}[family]
    return kind(**sizes, vocab_size=37, max_position_embeddings=19, type_vocab_size=5, **fields)


def save_tiny(directory: Path, family: str, kind: str = "base", **fields: Any) -> Path:
    """A random model in `directory`; every bias and norm is random too, so that none can be mistaken."""
    torch.manual_seed(3)
    model = KINDS[kind].from_config(tiny_config(family, **fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def save() -> Callable[..., Path]:
    return save_tiny


def safetensors_bytes(header: Any, data: bytes = b"", *, raw: bytes | None = None) -> bytes:
    text = raw if raw is not None else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def pack() -> Callable[..., bytes]:
    """Header (an object, or its bytes as raw=) and data as the bytes of a safetensors file."""
    return safetensors_bytes


LABELS = ("negative", "neutral", "positive")


def aligned(sources: Sequence[int | None], *, before: int = 37, extends: bool = True) -> Alignment:
    """Tokens t0, t1, …, each from one row of the checkpoint's table; from none: from rows 4 and 7."""
    words = (Word(i, f"t{i}", s, (4, 7) if s is None else ()) for i, s in enumerate(sources))
    return Alignment(tuple(words), before, extends, 24)


@pytest.fixture
def align() -> Callable[..., Alignment]:
    return aligned


def planned(
    source: Checkpoint,
    labels: Sequence[str] = LABELS,
    *,
    kind: str = "label",
    edit: Callable[[Rule], Rule] = lambda rule: rule,
    words: Alignment | None = None,
    pooling: str = "token",
) -> tuple[Plan, PretrainedConfig]:
    words = words or aligned(range(37))
    family, purpose = (
        find(architectures.body_type(source.config["model_type"])),
        purposes.find(kind, pooling=pooling),
    )
    head = purposes.choose(kind, family, pooling=pooling)
    config = skeleton.describe(source.config, head, purpose, labels if purpose.named else ())
    if not words.same:
        config.update(alignment.fields(words, config, {}))
    if family.heads[head].last:
        config.pad_token_id = alignment.padding(config, {"eos": 1})
    model = skeleton.empty(config)
    tied = skeleton.tied(model, source.entries)
    table = family.rules(
        head,
        source.config,
        new=purpose.new.format(config.num_labels),
        replaced=skeleton.replaced(source.config, config, purpose),
        tied=tied,
        words=words.op,
        reason=words.reason,
    )
    rules = [edit(rule) for rule in table]
    return plan(source.entries, rules, skeleton.targets(model, tied), seed=17, deviation=0.02), config


@pytest.fixture
def convert() -> Callable[..., tuple[Plan, Checkpoint]]:
    """Plan and place `source` into `target`; edit= changes rules of the table on the way, words= the vocabulary."""

    def body(
        source: Path, target: Path, labels: Sequence[str] = LABELS, **options: Any
    ) -> tuple[Plan, Checkpoint]:
        checkpoint = open_checkpoint(source)
        made, config = planned(checkpoint, labels, **options)
        place.write(made, target, skeleton.serialise(config, made.dtype), metadata={"family": "tiny"})
        return made, checkpoint

    return body
