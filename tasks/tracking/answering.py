"""How a served model answers where transformers has no pipeline for it: one that reads the mean of all
tokens, finds the answer to a question, or writes.

It travels with the model (flavor.py), and imports nothing of this project but what travels too, nor mlflow.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor
from transformers import AutoTokenizer

from tasks import architectures, spans

BATCH = 64  # rows at once


class Answering:
    """A model and its tokenizer. max_length: tokens of a row, the rest is cut. top_k: how many of a row's
    labels are told, the likeliest first, each in a column of its own; None: the likeliest alone."""

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int, top_k: int | None = None) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.top_k = max_length, top_k

    def predict(self, asked: pandas.DataFrame, params: Any = None) -> pandas.DataFrame:
        """asked: a column of texts, or two of pairs. Returns the columns label and score, or with top_k one
        column for each rank, with both."""
        columns = [asked[name].astype(str).tolist() for name in asked.columns]
        ranked = [row for start in range(0, len(asked), BATCH) for row in self._ranked(columns, start)]
        if self.top_k is None:
            return pandas.DataFrame([row[0] for row in ranked], columns=["label", "score"])
        return pandas.DataFrame(ranked, columns=[str(rank) for rank in range(self.top_k)])

    def _ranked(self, columns: Sequence[Sequence[str]], start: int) -> list[list[dict[str, Any]]]:
        """Of the rows from `start` on, their labels with scores, the highest first."""
        batch = [list(column[start : start + BATCH]) for column in columns]
        given = self.tokenizer(
            *batch, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        names = ["input_ids", "attention_mask", *(["token_type_ids"] if len(batch) > 1 else [])]
        with torch.inference_mode():
            logits = self.model(**{name: given[name] for name in names if name in given}).logits
        scores = SCORES[self.model.config.problem_type](logits)
        labels = self.model.config.id2label
        return [
            [
                {"label": labels[int(place)], "score": float(row[place])}
                for place in row.argsort(descending=True)
            ]
            for row in scores
        ]


@dataclass(frozen=True)
class Finding:
    """The part of a context that answers a question. max_length: tokens of a window over the context.
    stride: tokens that two windows share; None: a quarter of the window."""

    model: Any
    tokenizer: Any
    max_length: int
    stride: int | None = None

    def predict(self, asked: pandas.DataFrame, params: Any = None) -> list[str]:
        """asked: the columns context and question. Returns an answer a row, empty where there is none."""
        rows = zip(asked["context"].astype(str), asked["question"].astype(str), strict=True)
        return [self._found(context, question) for context, question in rows]

    def _found(self, context: str, question: str) -> str:
        windows = self.tokenizer(
            self._cut(question, context),
            context,
            truncation="only_second",
            max_length=self.max_length,
            stride=self.max_length // 4 if self.stride is None else self.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            padding=True,
            return_tensors="pt",
        )
        names = [name for name in self.tokenizer.model_input_names if name in windows]
        with torch.inference_mode():
            said = self.model(**{name: windows[name] for name in names})
        return spans.chosen([self._span(windows, said, place) for place in range(len(said[0]))], context)

    def _cut(self, question: str, context: str) -> str:
        """What a window has room for, half of it where the context fills it, as in training."""
        room = self.max_length - self.tokenizer.num_special_tokens_to_add(pair=True)
        beside = len(self.tokenizer(context, add_special_tokens=False)["input_ids"])
        places = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        kept = places["offset_mapping"][: max(room // 2, room - beside)]
        return question[: kept[-1][1]] if kept else question

    def _span(self, windows: Any, said: Any, place: int) -> spans.Span:
        sides = windows.sequence_ids(place)
        inside = torch.tensor([side == 1 for side in sides])[:, None]
        offsets = windows["offset_mapping"][place].where(inside, -1).numpy()
        return spans.likeliest(said.start_logits[place].numpy(), said.end_logits[place].numpy(), offsets)


@dataclass(frozen=True)
class Writing:
    """What an encoder-decoder makes of a text, its likeliest next token at a time, at most `max_length`."""

    model: Any
    tokenizer: Any
    max_length: int

    def predict(self, asked: pandas.DataFrame, params: Any = None) -> list[str]:
        """asked: a column of texts. Returns a text a row."""
        texts = asked[asked.columns[0]].astype(str).tolist()
        parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
        return [said for part in parts for said in self._written(part)]

    def _written(self, texts: list[str]) -> list[str]:
        cut = {"truncation": True, "max_length": self.max_length}
        given = self.tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False, **cut)
        with torch.inference_mode():
            said = self.model.generate(**given, max_new_tokens=self.max_length, do_sample=False)
        return list(self.tokenizer.batch_decode(said, skip_special_tokens=True))


def _load_pyfunc(path: str, config: Mapping[str, Any]) -> Answering | Finding | Writing:
    """What MLflow asks a loader module for. config: what the class is told that `answers` names."""
    names = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["architectures"]
    kind = architectures.find(names[0])
    model = kind.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, config=model.config, local_files_only=True)
    length = int(config["max_length"])
    if config.get("answers") == "found":
        return Finding(model, tokenizer, length, config.get("stride"))
    if config.get("answers") == "written":
        return Writing(model, tokenizer, length)
    return Answering(model, tokenizer, max_length=length, top_k=config.get("top_k"))


SCORES: Mapping[
    str, Callable[[Tensor], Tensor]
] = {  # config's problem_type -> logits to scores, alike in shape
    "single_label_classification": lambda logits: logits.softmax(dim=-1),
    "multi_label_classification": lambda logits: logits.sigmoid(),
    "regression": lambda logits: logits,
}
