"""`python -m benchmarks.sizing`: the tables of README's "How large a machine". Nothing is run: what was
measured is read from benchmarks/results, what is computed is the forecast of `regraft plan`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.quality_tables import table
from flows.commands import diagnosis, figures
from tasks.params import FinetuningParams
from tasks.training.forecast import FLOAT, Lengths, Outline, Schedule, Tensor, forecast

RESULTS = Path(__file__).parent / "results"
LINES = ("ours, short, full", "ours, long, full")
TOKENS = 128  # of each row
OPERATIONS = 6  # of each parameter and token, forward and backward (Kaplan et al., 2020)
DROPPED = 0.1  # validation rows among all


@dataclass(frozen=True)
class Size:
    """A BERT of this width and depth, and what it is trained on. processes: `finetuning.processes`."""

    model: str
    layers: int
    width: int
    rows: int
    processes: int = 1
    batch: int = 32
    checkpointing: bool = False


SIZES = (
    Size("MiniLM-L6", 6, 384, 10_000),
    Size("MiniLM-L6", 6, 384, 100_000),
    Size("BERT-base", 12, 768, 10_000),
    Size("BERT-base", 12, 768, 100_000),
    Size("BERT-base", 12, 768, 100_000, processes=4),
    Size("BERT-large", 24, 1024, 100_000),
    Size("BERT-large", 24, 1024, 100_000, checkpointing=True),
    Size("BERT-large", 24, 1024, 1_000_000, processes=8),
)


def measured() -> str:
    """Preparation by rows, fine-tuning of MiniLM by length."""
    found = {name: _result(name) for name in ("preparation", "finetuning")}
    about = found["preparation"]["figures"]
    rows = [
        [f"preparation, {told} rows, two cores", *_prepared(about, key, count)]
        for told, key, count in (
            ("10,000", "10k", 10**4),
            ("100,000", "100k", 10**5),
            ("1,000,000", "1m", 10**6),
        )
    ]
    ours = [one for one in found["finetuning"]["contestants"] if one["contestant"] in LINES]
    rows += [_trained(one) for one in sorted(ours, key=lambda one: LINES.index(one["contestant"]))]
    return table(["measured", "10,000 rows take", "peak memory"], rows)


def _prepared(about: Mapping[str, float], key: str, count: int) -> list[str]:
    speed, memory = about[f"rows_per_second_{key}"], about[f"peak_rss_mb_{key}"]
    return [figures.duration(10_000 / speed), figures.size(int(memory * 10**6))]


def _trained(one: Mapping[str, Any]) -> list[str]:
    name = f"an epoch of MiniLM-L6, {one['tokens_per_row']:.0f} tokens a row, one core"
    return [name, figures.duration(10 * one["cpu_ms_per_row"]), figures.size(int(one["peak_rss_mb"] * 10**6))]


def computed() -> str:
    """All layers learn, by AdamW in float32."""
    header = ["computed", "rows", "`processes`", "memory of each", "disk", "steps an epoch", "processor time"]
    return table(header, [_computed(size) for size in SIZES])


def _computed(size: Size) -> list[str]:
    outline = _outline(size)
    lengths = Lengths([TOKENS] * int(size.rows * (1 - DROPPED)), [TOKENS] * int(size.rows * DROPPED))
    phase = forecast(Schedule(outline, lengths, _settings(size)))[0]
    seconds = OPERATIONS * _layers(outline) * sum(lengths.train) / _speed()
    remark = ", `gradient_checkpointing`" if size.checkpointing else ""
    return [
        f"{size.model}, {outline.parameters / 10**6:,.0f} M parameters{remark}",
        f"{size.rows:,}",
        str(size.processes),
        figures.size(sum((phase.memory or {}).values())),
        figures.size(diagnosis.COPIES * outline.parameters * FLOAT),
        f"{phase.steps:,}",
        figures.duration(seconds),
    ]


def _settings(size: Size) -> FinetuningParams:
    return FinetuningParams.model_validate(
        {
            "phases": [{"name": "whole", "depth": "all", "epochs": 1, "learning_rate": 2e-5}],
            "batch_size": size.batch,
            "processes": size.processes,
            "gradient_checkpointing": size.checkpointing,
        }
    )


def _outline(size: Size) -> Outline:
    heads = size.width // (32 if size.width < 768 else 64)
    config = BertConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        intermediate_size=4 * size.width,
        num_attention_heads=heads,
    )
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    floors: dict[str, dict[str, Tensor]] = {
        name: {} for name in ("embeddings", *(f"layer {n}" for n in range(size.layers)), "head")
    }
    for name, value in model.named_parameters():
        floors[_floor(name)][name] = Tensor(tuple(value.shape), "")
    return Outline(floors, width=size.width, inner=4 * size.width, heads=heads)


def _floor(name: str) -> str:
    if found := re.search(r"layer\.(\d+)\.", name):
        return f"layer {found[1]}"
    return "embeddings" if ".embeddings." in name else "head"


def _layers(outline: Outline) -> int:
    """Parameters that a token is multiplied with."""
    floors = outline.floors.items()
    return sum(tensor.size for name, floor in floors if name.startswith("layer") for tensor in floor.values())


def _speed() -> float:
    """Operations a second of one core, as measured on MiniLM with long texts."""
    (one,) = [c for c in _result("finetuning")["contestants"] if c["contestant"] == "ours, long, full"]
    return (
        OPERATIONS
        * _layers(_outline(SIZES[0]))
        * float(one["tokens_per_row"])
        / (one["cpu_ms_per_row"] / 1000)
    )


def _result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def tables() -> Sequence[str]:
    return (measured(), computed())


if __name__ == "__main__":
    print("\n\n".join(tables()))
