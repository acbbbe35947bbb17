"""Labels behind prompts: how likely a causal language model is to go on with the name of each, by lm-eval.

A prompt is a template around each demonstration with its label, then around the text in question without one;
lm-eval puts it together, cuts it into tokens and scores what may follow (Gao et al. 2021).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto import modeling_auto

from tasks.errors import CheckpointError
from tasks.evaluation.asking import predict
from tasks.evaluation.predictions import Array
from tasks.progress import track

ROWS, CHUNK = 64, 16  # prompts of a forward pass, at most; texts between two looks at the progress


@dataclass(frozen=True)
class Prompt:
    """template: ends with {label}, has {text} once before it, and {labels} for the list of all.
    shown: texts with the numbers of their labels, in this order."""

    template: str
    labels: Sequence[str]
    shown: Sequence[tuple[str, int]] = ()

    @property
    def names(self) -> list[str]:
        """What is said for each label."""
        return [label.replace("_", " ") for label in self.labels]

    def question(self, text: str) -> str:
        """The template around `text`, up to the label and what is blank before it."""
        before = self.template.removesuffix("{label}").rstrip()
        head, tail = (part.replace("{labels}", ", ".join(self.names)) for part in before.split("{text}"))
        return f"{head}{text}{tail}"

    @property
    def blank(self) -> str:
        """What stands between the question and the label."""
        before = self.template.removesuffix("{label}")
        return before[len(before.rstrip()) :]


@dataclass(frozen=True)
class Scored:
    """likelihoods: ln p of each label's name behind each text's prompt, (rows, labels) float64. cut: rows
    whose prompt was longer than the model's positions, so that its beginning was left out."""

    likelihoods: Array
    cut: int


def demand(config: PretrainedConfig, name: str) -> None:
    """Raises CheckpointError unless a classifier of this config (at `name`) was made from a language model
    that can be had back."""
    kind = config.model_type
    causal, masked = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )
    if kind not in causal or kind in masked:
        raise CheckpointError(
            f"{name} is of type {kind}, which does not write: the baseline k_shot asks decoders alone; leave "
            "it out of evaluation.baselines, or take a decoder (sources.checkpoint)"
        )
    if not config.tie_word_embeddings:
        raise CheckpointError(
            f"{name}: this {kind} writes by a table of its own (tie_word_embeddings is false), which a "
            "classifier does not keep: leave k_shot out of evaluation.baselines"
        )


def language_model(model: PreTrainedModel) -> PreTrainedModel:
    """The causal language model whose layers and word table `model`, a classifier, has; they are shared.

    Raises CheckpointError where that has any other weights.
    """
    name = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model.config.model_type]
    with torch.device("meta"):
        found: PreTrainedModel = getattr(transformers, name)(model.config)
    setattr(found, found.base_model_prefix, model.base_model)
    found.tie_weights()
    if missing := [name for name, value in found.named_parameters() if value.is_meta]:
        raise CheckpointError(
            f"{name} has weights that its classifier does not keep ({', '.join(missing)}): leave k_shot out "
            "of evaluation.baselines"
        )
    found.eval()
    return found


def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, texts: Sequence[str]
) -> Scored:
    """Of every text and label. Too long a prompt loses its beginning: the first demonstrations go first."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # warns of every model object and every cut row
    requests = list(_requests(prompt, texts))
    asker = _asker(model, tokenizer)
    sizes = np.array([_length(asker, row) for row in requests])
    fits = int(min(sizes.max(), asker.max_length))
    asker.batch_size_per_gpu = predict.affordable(model, {"input_ids": [range(fits)]}, ROWS)
    order = np.argsort(-sizes, kind="stable")  # those of one pass are about as long
    found = np.zeros((len(texts), len(prompt.labels)))
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    for chunk in track(chunks, total=len(texts), description="prompting", size=len):
        asked = [request for row in chunk for request in requests[row]]
        said = asker.loglikelihood(asked, disable_tqdm=True)
        found[chunk] = np.array([likelihood for likelihood, _ in said]).reshape(len(chunk), -1)
    return Scored(found, int((sizes > asker.max_length).sum()))


def _asker(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """lm-eval's model around ours. A tokenizer that closes texts by a token must not close a prompt."""
    from lm_eval.models.huggingface import HFLM

    known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    start = next((token for token in known if token is not None), 0)
    closed = tokenizer("a")["input_ids"][-1:] != tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    return HFLM(
        model,
        backend="causal",
        tokenizer=tokenizer,
        prefix_token_id=start,
        add_bos_token=False if closed else None,
    )


def _requests(prompt: Prompt, texts: Sequence[str]) -> Iterator[list[Any]]:
    """lm-eval's requests for each text, one a label."""
    task = _task(prompt, texts)
    for doc in task.test_docs():
        context = task.fewshot_context(doc, num_fewshot=len(prompt.shown))
        yield task.construct_requests(doc=doc, ctx=context, metadata=(None, 0, 1))


def _task(prompt: Prompt, texts: Sequence[str]) -> Any:
    """A task of lm-eval's on rows in memory."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = Dataset.from_dict({"text": list(texts), "label": [0] * len(texts)})  # the label is never looked at
    shown = [{"text": text, "label": label} for text, label in prompt.shown]
    return ConfigurableTask(
        config={
            "task": "k_shot",
            "custom_dataset": lambda: {"test": rows},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": lambda row: prompt.question(row["text"]),
            "doc_to_target": lambda row: row["label"],
            "doc_to_choice": prompt.names,
            "target_delimiter": prompt.blank,
            "num_fewshot": len(shown),
            "fewshot_config": {"sampler": "first_n", "samples": shown},
        }
    )


def _length(asker: Any, requests: Sequence[Any]) -> int:
    """Tokens that the model reads for the longest of a row's requests; the last one is only foreseen."""
    return max(len(asker.tok_encode("".join(request.args))) - 1 for request in requests)
