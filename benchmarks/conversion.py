"""`python -m benchmarks.conversion [--quick]`: what converting a checkpoint costs beside copying its file.

Every contestant is a whole process, from its start to its end, imports included, from bytecode as installed
packages have it; they take turns, the pages of the source are in memory, and what was written before is gone
from the disk's queue. Prints the contestants and writes benchmarks/results/conversion.json; a quick run
conversion-quick.json, and the other only where no full run has.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import record

LIBRARIES = ("torch", "transformers", "safetensors", "numpy")
OURS = "benchmarks.transcription"
RENAMED, TURNED = "gpt-textbook-conv1d", "gpt-textbook"  # families that rename alone, and that transpose too
COPY_AND_WAIT = 'cp "$0" "$1" && sync "$1"'  # until the disk has it


class Size(NamedTuple):
    layers: int  # of GPT-2's, each 28 MB, beside 158 MB of embeddings
    repetitions: int


FULL, QUICK = Size(24, 7), Size(1, 1)


class Cost(NamedTuple):
    seconds: float
    rss_mb: float  # peak


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small file, once: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        contestants = _contest(Path(folder), size)
    figures = _figures(contestants)
    targets = record.targets(options.into, "conversion", quick=options.quick)
    for target in targets:
        record.write(
            target, figures, contestants, libraries=LIBRARIES, quick=options.quick, sizes=size._asdict()
        )
    keys = [{"figure": name, "value": value} for name, value in figures.items()]
    print("\n\n".join(map(record.table, (contestants, keys))))
    print("", *targets, sep="\n")


def _contest(folder: Path, size: Size) -> list[dict[str, Any]]:
    record.say("making the checkpoints")
    forms = {name: Path(path) for name, path in record.alone(_forms, str(folder), size.layers).items()}
    out = folder / "out"
    commands = _commands(forms, out, folder / "kept")
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    for number in range(size.repetitions):
        for name, command in commands.items():
            record.say(f"{name}, {number + 1} of {size.repetitions}")
            costs[name].append(_run(command, out))
    return [_line(name, found, costs["cp"]) for name, found in costs.items()]


def _forms(folder: str, layers: int) -> dict[str, str]:
    from benchmarks import checkpoints

    return {name: str(path) for name, path in checkpoints.make(Path(folder), layers).items()}


def _commands(forms: Mapping[str, Path], out: Path, kept: Path) -> dict[str, list[str]]:
    def ours(what: str, form: str, target: Path, family: str) -> list[str]:
        return [sys.executable, "-m", OURS, what, str(forms[form]), str(target), family]

    subprocess.run(ours("convert", RENAMED, kept, RENAMED), check=True, env=_environment())
    peer = [sys.executable, "-m", OURS, "peer", str(forms["transformers"]), str(out)]
    return {
        "cp": ["cp", str(forms[RENAMED] / "model.safetensors"), str(out)],
        "cp, on disk": ["sh", "-c", COPY_AND_WAIT, str(forms[RENAMED] / "model.safetensors"), str(out)],
        "renamed, on disk": ours("durable", RENAMED, out, RENAMED),
        "renamed": ours("convert", RENAMED, out, RENAMED),
        "renamed, from .pt": ours("convert", "pt", out, RENAMED),
        "renamed and transposed": ours("convert", TURNED, out, TURNED),
        "compared byte for byte": ours("verify", RENAMED, kept, RENAMED),
        "sha256 of every tensor": ours("digest", RENAMED, kept, RENAMED),
        "transformers, load and save": peer,
    }


def _run(command: Sequence[str], out: Path) -> Cost:
    if out.is_dir():
        shutil.rmtree(out)
    out.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=_environment())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return Cost(seconds, usage.ru_maxrss / 1024)


def _environment() -> dict[str, str]:
    """Ours, offline, and with bytecode: compiling our modules anew takes as long as a quarter of the copy."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def _line(name: str, costs: Sequence[Cost], copies: Sequence[Cost]) -> dict[str, Any]:
    seconds = statistics.median(cost.seconds for cost in costs)
    return {
        "contestant": name,
        "seconds": seconds,
        "times_cp": seconds / statistics.median(cost.seconds for cost in copies),
        "peak_rss_mb": max(cost.rss_mb for cost in costs),
    }


def _figures(contestants: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    lines = {line["contestant"]: line for line in contestants}
    renamed = lines["renamed"]
    return {
        "rename_over_cp": renamed["times_cp"],
        "rename_over_cp_on_disk": lines["renamed, on disk"]["seconds"] / lines["cp, on disk"]["seconds"],
        "rename_rss_mb": renamed["peak_rss_mb"],
        "pt_over_cp": lines["renamed, from .pt"]["times_cp"],
        "transpose_over_cp": lines["renamed and transposed"]["times_cp"],
        "transpose_rss_mb": lines["renamed and transposed"]["peak_rss_mb"],
        "transformers_over_cp": lines["transformers, load and save"]["times_cp"],
        "compare_over_copy": lines["compared byte for byte"]["seconds"] / renamed["seconds"],
        "sha256_over_copy": lines["sha256 of every tensor"]["seconds"] / renamed["seconds"],
    }


if __name__ == "__main__":
    main()
