"""`python -m benchmarks.serving [--quick]`: what adapters on one base cost, and whether one answers wrong.

Adapters of rank 8 on every attention layer, with heads of two to six labels and random values, on the
packaged encoder; rows are tweets. In turns, one thread, seconds of the processor: a batch of 32 rows for 8
adapters by `Bank.answer`; the same rows adapter by adapter, by peft (`set_adapter`, grouped, which is its
best) and by the bank; a row's answer by the adapter of the row before, and by another; base and adapter
loaded anew. What a swap takes is what the second of these takes longer than the first. Then what a process
holds of memory with the base alone and with 100 adapters, and a soak: threads ask while adapters come and go
and have no room for one another; each answer is compared with that of the adapter alone. Writes
benchmarks/results/serving.json; a quick run serving-quick.json, and the other only where no full run has.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from benchmarks import contest, labelled, record
from tasks.model import adapters, floors
from tasks.model.adapters import Adapter
from tasks.model.bank import Bank
from tasks.model.batches import Ragged, Rows

LIBRARIES = ("torch", "transformers", "peft")
NAMES = tuple(f"task{number}" for number in range(8))
ADAPTER, DIGEST = Adapter("lora", rank=8), "sha256:benchmark"
ROWS, RESIDENT, THREADS = 32, 100, 4
MIXED, GROUPED, PEFT = "one mixed batch", "adapter by adapter, bank", "adapter by adapter, peft"
SAME, SWAPPED = "one row, the same adapter", "one row, another adapter"
RELOADED = "base and adapter loaded anew"
NEAR = 1e-5  # of logits: sums of another length are added in another order


class Size(NamedTuple):
    repetitions: int
    soak: float  # seconds


FULL, QUICK = Size(31, 600.0), Size(3, 3.0)
Given = Mapping[str, Tensor]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns, a short soak: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        share = record.alone(write, folder, threads=1)
        seconds = record.alone(contested, folder, size.repetitions, threads=1)
        alone, crowded = (record.alone(held, folder, number, threads=1) for number in (0, RESIDENT))
        answers, wrong = record.alone(soak, folder, size.soak, threads=1)
    figures = {
        "mixed_speedup": seconds[PEFT] / seconds[MIXED],
        "swap_over_reload": max(0.0, seconds[SWAPPED] - seconds[SAME]) / seconds[RELOADED],
        "adapter_bytes_share": share,
        "resident100_memory_ratio": crowded / alone,
        "wrong_answers": wrong,
    }
    lines = [{"contestant": name, "cpu_s": value} for name, value in seconds.items()]
    for target in record.targets(options.into, "serving", quick=options.quick):
        record.write(target, figures, lines, libraries=LIBRARIES, quick=options.quick, soak_answers=answers)
        record.say(str(target))
    told = [{"figure": name, "value": value} for name, value in figures.items()]
    print(record.table(lines), record.table(told), f"{answers:,} answers compared", sep="\n\n")


def write(folder: Path) -> float:
    """The base and its adapters; returns what the largest adapter has of the base's bytes."""
    sizes = []
    for place, name in enumerate(NAMES):
        model = _made(2 + place % 5)
        if not place:
            model.save_pretrained(folder / "base")
        adapters.inject(model, ADAPTER, range(model.config.num_hidden_layers), seed=place)
        _shake([one for floor in floors.floors(model) for one in floor.adapter.values()], place)
        adapters.save(model, ADAPTER, folder / name, base=DIGEST)
        sizes.append((folder / name / adapters.WEIGHTS).stat().st_size)
    return max(sizes) / (folder / "base" / "model.safetensors").stat().st_size


def contested(folder: Path, repetitions: int) -> dict[str, float]:
    """Seconds of the processor of each contestant, medians; they take turns."""
    given, names, ways = _given(ROWS), [NAMES[row % len(NAMES)] for row in range(ROWS)], {}
    bank = _bank(folder)
    ways[MIXED] = lambda: bank.answer(given, names)
    ways[GROUPED] = lambda: [bank.answer(_rows(given, names, name), [name] * 4) for name in NAMES]
    ways[PEFT] = _by_peft(folder, given, names)
    one = {name: value[:1] for name, value in given.items()}
    ways[SAME] = lambda: bank.answer(one, [NAMES[0]])
    ways[SWAPPED] = _swapped(bank, one)
    ways[RELOADED] = lambda: adapters.load(floors.load(folder / "base"), folder / NAMES[0], base=DIGEST)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1, repetitions):  # the first is to warm up
        record.say(f"turn {number + 1} of {repetitions}")
        for name, way in ways.items():
            begun = time.process_time()
            way()
            found[name] += [time.process_time() - begun] if number >= 0 else []
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def held(folder: Path, number: int) -> int:
    """Bytes that this process holds with so many adapters on the base, after an answer."""
    _quiet()
    given = _given(8)
    if not number:
        model = floors.load(folder / "base")
        with torch.inference_mode():
            model(**given)
        return int(psutil.Process().memory_full_info().uss)
    bank = Bank(floors.load(folder / "base"))
    for place in range(number):
        bank.load(f"copy{place}", folder / NAMES[place % len(NAMES)])
    bank.answer(given, [f"copy{place}" for place in range(8)])
    return int(psutil.Process().memory_full_info().uss)


def soak(folder: Path, seconds: float) -> tuple[int, int]:
    """Answers that threads got, and how many of them were wrong; there is room for five of the eight."""
    given, expected = _given(ROWS), {}
    for name in NAMES:
        alone = Bank(floors.load(folder / "base"))
        size = alone.load(name, folder / name).size
        expected[name] = alone.answer(given, [name] * ROWS)
    bank, ends = Bank(floors.load(folder / "base"), room=5 * size), time.monotonic() + seconds
    for name in NAMES:
        bank.load(name, folder / name)
    with ThreadPoolExecutor(THREADS + 1) as pool:
        coming = pool.submit(_come_and_go, bank, folder, ends)
        asked = [pool.submit(_ask, bank, given, expected, ends, seed) for seed in range(THREADS)]
        results = [one.result() for one in asked]
        coming.result()
    return sum(asked for asked, _ in results), sum(wrong for _, wrong in results)


def _ask(
    bank: Bank, given: Given, expected: Mapping[str, Sequence[Tensor]], ends: float, seed: int
) -> tuple[int, int]:
    chance, asked, wrong = np.random.default_rng(seed), 0, 0
    while time.monotonic() < ends:
        some = chance.choice(NAMES, size=2, replace=False)
        rows, names = (
            chance.choice(ROWS, size=8, replace=False).tolist(),
            chance.choice(some, size=8).tolist(),
        )
        found = bank.answer({key: value[rows] for key, value in given.items()}, names)
        for row, name, answer in zip(rows, names, found, strict=True):
            right = expected[name][row]
            asked += 1
            wrong += right.shape != answer.shape or not torch.allclose(answer, right, rtol=0, atol=NEAR)
    return asked, wrong


def _come_and_go(bank: Bank, folder: Path, ends: float) -> None:
    while time.monotonic() < ends:
        bank.load("guest", folder / NAMES[0])
        bank.load("guest", folder / NAMES[1], replace=True)
        bank.unload("guest")
        threading.Event().wait(0.05)


def _swapped(bank: Bank, given: Given) -> Callable[[], Any]:
    turn = count()
    return lambda: bank.answer(given, [NAMES[next(turn) % len(NAMES)]])


def _by_peft(folder: Path, given: Given, names: Sequence[str]) -> Callable[[], Any]:
    """One model, all adapters in it, each set for its rows: heads left out, whose shapes peft wants equal."""
    body = floors.load(folder / "base")
    model = PeftModel.from_pretrained(body.base_model, *_bare(folder, NAMES[0]))
    for name in NAMES[1:]:
        model.load_adapter(*_bare(folder, name))
    parts = {name: _rows(given, names, name) for name in NAMES}

    def answer() -> None:
        with torch.inference_mode():
            for name in NAMES:
                model.set_adapter(name)
                model(**parts[name])

    return answer


def _bare(folder: Path, name: str) -> tuple[str, str]:
    """A folder of peft's with the body's part alone, and the adapter's name."""
    target = folder / "bare" / name
    target.mkdir(parents=True)
    tensors = {
        key.replace("model.bert.", "model."): value
        for key, value in load_file(folder / name / adapters.WEIGHTS).items()
        if ".lora_" in key
    }
    save_file(tensors, target / adapters.WEIGHTS, {"format": "pt"})
    about = json.loads((folder / name / adapters.CONFIG).read_text(encoding="utf-8"))
    about["target_modules"] = [one.removeprefix("bert.") for one in about["target_modules"]]
    (target / adapters.CONFIG).write_text(json.dumps(about | {"modules_to_save": None}), encoding="utf-8")
    return str(target), name


def _bank(folder: Path) -> Bank:
    _quiet()
    bank = Bank(floors.load(folder / "base"))
    for name in NAMES:
        bank.load(name, folder / name)
    return bank


def _made(labels: int) -> Any:
    _quiet()
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(contest.checkpoint(), num_labels=labels).eval()


def _shake(values: Sequence[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in values:
            value += torch.randn(value.shape, generator=generator) * 0.02


def _given(rows: int) -> Given:
    texts = labelled.read("short", contest.checkpoint()).first(rows)
    return Rows(Ragged.of(texts.input_ids), None, 0).batch(range(rows), torch.device("cpu"))


def _rows(given: Given, names: Sequence[str], name: str) -> Given:
    chosen = [row for row, one in enumerate(names) if one == name]
    return {key: value[chosen] for key, value in given.items()}


def _quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    main()
