"""Which trials come next: all of a grid at once, or what optuna proposes after the results so far."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from flows.sweeps.axes import Axis, Space, Trial
from tasks.errors import InputError, ParamsError
from tasks.sweeps.results import Result, descending

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)
SEED = 1  # of what optuna draws: the same results lead to the same proposals, and these to DVC's cache


class Proposals(Protocol):
    def next(self) -> list[Trial]:
        """The trials to run now; none at the end."""

    def hear(self, results: Sequence[Result]) -> None:
        """What became of them, in the same order."""


class Grid:
    def __init__(self, space: Space) -> None:
        self._left = space.grid()

    def next(self) -> list[Trial]:
        found, self._left = self._left, []
        return found

    def hear(self, results: Sequence[Result]) -> None: ...


class Search:
    """`trials` proposals of a tree-structured Parzen estimator (Bergstra et al., 2011), `jobs` at a time."""

    def __init__(self, space: Space, trials: int, jobs: int) -> None:
        self._space, self._left, self._jobs = space, trials, jobs
        self._select = space.select
        self._study = _study(descending(self._select))
        self._open: list[tuple[optuna.Trial, str]] = []
        self._known: dict[str, Result] = {}

    def next(self) -> list[Trial]:
        """Up to `jobs` trials that are new; a proposal that was tried before is answered from memory."""
        found: dict[str, Trial] = {}
        while self._left and len(found) < self._jobs:
            self._left -= 1
            asked = self._study.ask()
            try:
                trial = self._space.trial({axis.key: _suggested(asked, axis) for axis in self._space.axes})
            except ParamsError as error:  # such as a phase that a preset does not have
                log.warning("a proposal that cannot be: %s", error)
                self._fail(asked)
                continue
            if trial.name in self._known:
                self._tell(asked, self._known[trial.name])
                continue
            self._open.append((asked, trial.name))
            found[trial.name] = trial
        return list(found.values())

    def hear(self, results: Sequence[Result]) -> None:
        self._known |= {result.trial: result for result in results}
        for asked, name in self._open:
            self._tell(asked, self._known[name])
        self._open = []

    def _tell(self, asked: "optuna.Trial", result: Result) -> None:
        if result.failure:
            self._fail(asked)
        else:
            self._study.tell(asked, result.figures[self._select])

    def _fail(self, asked: "optuna.Trial") -> None:
        from optuna.trial import TrialState

        self._study.tell(asked, state=TrialState.FAIL)


def proposals(space: Space, trials: int | None, jobs: int) -> Proposals:
    """Raises ParamsError for a grid with impossible params, InputError for a search without optuna."""
    return Grid(space) if trials is None else Search(space, trials, jobs)


def _study(maximize: bool) -> "optuna.Study":
    try:
        import optuna
    except ModuleNotFoundError:
        raise InputError("--trials needs optuna: pip install 'regraft[optuna]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction = "maximize" if maximize else "minimize"
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=SEED), direction=direction)


def _suggested(asked: "optuna.Trial", axis: Axis) -> str:
    if axis.span is None:
        return str(asked.suggest_categorical(axis.key, axis.values))
    low, high, log = axis.span.low, axis.span.high, axis.span.log
    if axis.span.whole:
        return str(asked.suggest_int(axis.key, int(low), int(high), log=log))
    return f"{asked.suggest_float(axis.key, low, high, log=log):.3g}"
