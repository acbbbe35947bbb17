"""How a served model of ours answers: what MLflow loads where a class is none of transformers.

It travels with the model, beside the class itself (flavor.py), and so imports nothing else of this project,
nor mlflow. It answers as transformers' pipeline does for a stock class.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import torch
from torch import Tensor
from transformers import AutoTokenizer

from tasks import architectures

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


def _load_pyfunc(path: str, config: Mapping[str, Any]) -> Answering:
    """What MLflow asks a loader module for. config: what `Answering` is told."""
    names = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["architectures"]
    model = architectures.CLASSES[names[0]].from_pretrained(path, local_files_only=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path, config=model.config, local_files_only=True)
    top_k = config.get("top_k")
    return Answering(model.eval(), tokenizer, max_length=int(config["max_length"]), top_k=top_k)


SCORES: Mapping[
    str, Callable[[Tensor], Tensor]
] = {  # config's problem_type -> logits to scores, alike in shape
    "single_label_classification": lambda logits: logits.softmax(dim=-1),
    "multi_label_classification": lambda logits: logits.sigmoid(),
    "regression": lambda logits: logits,
}
