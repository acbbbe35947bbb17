"""How fast each phase went and what it took. It depends on the clock and the machine, so that it is kept
beside the resume point and never among what is digested.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from tasks import environment, files
from tasks.training import energy
from tasks.training.energy import Counter
from tasks.training.events import Event, Finished
from tasks.training.loop import Step, Work
from tasks.training.phases import Planned

LOOK = 10.0  # seconds after which energy is looked at again: a package's counter begins anew within minutes


@dataclass
class Tally:
    """One phase while it goes on: what its steps were made of, and seconds that were no steps."""

    begun: float = field(default_factory=time.perf_counter)
    processor: float = field(default_factory=time.process_time)
    frozen: float = 0.0
    validation: float = 0.0
    steps: int = 0
    rows: int = 0
    tokens: int = 0
    positions: int = 0
    joules: float | None = None

    def count(self, step: Step) -> None:
        self.steps += 1
        self.rows += step.rows
        self.tokens += step.tokens
        self.positions += step.positions

    def figures(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.begun
        learning = max(seconds - self.frozen - self.validation, 1e-9)
        found = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - self.processor,
            "frozen_seconds": self.frozen,
            "validation_seconds": self.validation,
            "steps": self.steps,
            "rows_per_second": self.rows / learning,
            "tokens_per_second": self.tokens / learning,
            "padding": 1 - self.tokens / max(1, self.positions),
            "peak_memory_bytes": environment.peak_memory(),  # of the process so far
        }
        if torch.cuda.is_available():
            found["device_peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        return found | ({} if self.joules is None else {"joules": self.joules})


class Meter:
    """Phase -> figures in `found`, kept in the file `kept`, so that a training that goes on knows those of
    the phases before. Of a phase that was interrupted they tell the part since it went on.

    Seconds of steps are all that are neither the frozen pass nor validation: resume points and tracking too.
    """

    def __init__(self, kept: Path) -> None:
        self.kept = kept
        self.found: dict[str, Mapping[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
        self._tallies: dict[str, Tally] = {}
        self._looked, self._counters = 0.0, dict[str, Counter]()

    def around(self, phase: Planned) -> Planned:
        """The same phase; what is not its steps is timed."""
        return replace(
            phase,
            work=partial(self._begin, phase),
            measure=partial(self._validated, phase.name, phase.measure),
        )

    def follow(self, events: Iterable[Event]) -> Iterator[Event]:
        """Yield `events` unchanged. Those of before an interruption, which are told again, do not count."""
        for event in events:
            if isinstance(event, Step) and event.phase in self._tallies:
                self._tallies[event.phase].count(event)
                if time.perf_counter() - self._looked > LOOK:
                    self._look(event.phase)
            if isinstance(event, Finished) and event.name in self._tallies:
                self._end(event.name)
            yield event

    def _begin(self, phase: Planned) -> Work:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        tally = self._tallies[phase.name] = Tally()
        self._looked, self._counters = tally.begun, energy.counters()
        work = phase.work()
        tally.frozen = time.perf_counter() - tally.begun
        return work

    def _validated(self, phase: str, measure: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        begun = time.perf_counter()
        figures = measure()
        self._tallies[phase].validation += time.perf_counter() - begun
        return figures

    def _look(self, phase: str) -> None:
        now = energy.counters()
        if now:
            tally = self._tallies[phase]
            tally.joules = (tally.joules or 0.0) + energy.spent(self._counters, now)
        self._looked, self._counters = time.perf_counter(), now

    def _end(self, phase: str) -> None:
        self._look(phase)
        self.found[phase] = self._tallies.pop(phase).figures()
        files.write_text(self.kept, files.canonical_json(self.found))
