"""How fast a champion answers: the way of `regraft predict`, and transformers' pipeline at its best batch."""

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from transformers.utils import logging

from benchmarks import corpus, labelled, record
from tasks import architectures, params, references
from tasks.evaluation.asking import predict
from tasks.model import batches, unpadded
from tasks.stages.champion import BATCH_ROWS

ROOT = Path(__file__).parents[1]
BATCHES = (1, 4, 8, 16, 32, 64)  # that the pipeline may have
OURS, THEIRS = "regraft predict", "pipeline, batch {}"
MEAN = "regraft predict, mean pooling"
FIGURES = {"short": "predict_short_vs_pipeline", "long": "predict_long_vs_pipeline"}
WARM = 32  # texts that nobody counts


class Turn(NamedTuple):
    """Processor seconds of one contestant for `rows` texts."""

    contestant: str
    texts: str
    rows: int
    seconds: float


def measure(rows: Mapping[str, int], repetitions: int) -> list[Turn]:
    """`rows` texts of each length. To be called in a process of its own, whose threads are pinned."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    ways, turns = _ways(), list[Turn]()
    for name, count in rows.items():
        texts = _texts(name, count)
        for number in range(-1, repetitions):  # the first is to warm up
            record.say(f"prediction, {name} texts, {number + 1} of {repetitions}")
            for contestant, answer in ways.items():
                some = texts if number >= 0 else texts[:WARM]
                begun = time.process_time()
                answer(some)
                seconds = time.process_time() - begun
                turns += [Turn(contestant, name, len(some), seconds)] if number >= 0 else []
    return turns


def figures(turns: Sequence[Turn]) -> dict[str, float]:
    """How many times as many rows a second ours answers as the pipeline at its best batch size."""
    found = {}
    for name, figure in FIGURES.items():
        theirs = min(_median(turns, name, THEIRS.format(size)) for size in BATCHES)
        found[figure] = theirs / _median(turns, name, OURS)
    return found


def lines(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    keys = dict.fromkeys((turn.contestant, turn.texts, turn.rows) for turn in turns)
    return [
        {
            "contestant": f"{contestant}, {texts}",
            "rows": rows,
            "rows_per_cpu_second": rows / _median(turns, texts, contestant),
        }
        for contestant, texts, rows in keys
    ]


def _median(turns: Sequence[Turn], texts: str, contestant: str) -> float:
    return statistics.median(
        turn.seconds for turn in turns if (turn.texts, turn.contestant) == (texts, contestant)
    )


def _ways() -> dict[str, Callable[[Sequence[str]], Any]]:
    directory = references.locate(params.load(ROOT / "params.yaml").sources.checkpoint.path, root=ROOT)
    torch.manual_seed(corpus.SEED)
    model = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=3).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.backend_tokenizer.no_padding()
    cut = batches.suited(model, BATCH_ROWS)
    ask = partial(
        predict.predict_texts, tokenizer=tokenizer, kind="label", batches=cut, max_length=labelled.LONGEST
    )

    def ours(model: Any, texts: Sequence[str]) -> Any:
        return ask(model, texts=texts)

    piped = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")

    def theirs(texts: Sequence[str], size: int) -> Any:
        return piped(list(texts), batch_size=size, truncation=True, max_length=labelled.LONGEST)

    own = {OURS: partial(ours, unpadded.quickest(model)), MEAN: partial(ours, _mean_pooled(model))}
    return own | {THEIRS.format(size): partial(theirs, size=size) for size in BATCHES}


def _mean_pooled(model: Any) -> Any:
    """The same layers below a head that reads the mean of all tokens, and so needs all of them."""
    fields = {name: value for name, value in model.config.to_dict().items() if name != "model_type"}
    config = architectures.configured(f"{architectures.OURS}bert", **fields)
    made = architectures.CLASSES["BertForMeanClassification"](config).eval()
    made.base_model.load_state_dict(model.base_model.state_dict(), strict=False)
    return unpadded.quickest(made)


def _texts(name: str, count: int) -> list[str]:
    texts, lengths = labelled.VIEWS[name]
    words = range(lengths.start - 2, lengths.stop - 2)
    found = sorted({text for text, _ in texts() if len(text.split()) in words})
    random.Random(corpus.SEED).shuffle(found)
    return found[:count]
