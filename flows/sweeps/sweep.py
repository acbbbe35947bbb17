"""A sweep as a Prefect flow: once what no trial changes, a task for each trial, then the winner's test."""

import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import flow, task, unmapped
from prefect.client.orchestration import get_client
from prefect.futures import PrefectFuture, as_completed
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner

from flows.checkout import workspace
from flows.checkout.stage import in_order, reproduce
from flows.commands import forecast
from flows.pipeline import stage_task
from flows.sweeps import axes, search, worker
from flows.sweeps.axes import Space, Trial
from flows.sweeps.search import Proposals
from tasks import environment, files
from tasks import params as parameters
from tasks.artifacts import Evaluation, TrainedModel
from tasks.params import Params
from tasks.sweeps import report
from tasks.sweeps.results import Result, ranked

log = logging.getLogger(__name__)
LEARNED, TESTED = TrainedModel.stage, Evaluation.stage
PAGE = "sweep.html"


@dataclass(frozen=True)
class Swept:
    """results: best first, failed ones last. winner, and root, its workspace: None where all failed."""

    results: tuple[Result, ...]
    select: str
    winner: Trial | None
    root: Path | None


@dataclass(frozen=True)
class Ground:
    """What the trials have in common: the checkout, a workspace with `base` in which everything before
    fine-tuning is up to date, and the id of the sweep's MLflow run."""

    checkout: Path
    root: Path
    base: Params
    run: str

    @property
    def before(self) -> list[str]:
        return before_learning(self.root)


@flow(name="sweep", description=__doc__)
def sweep(
    overrides: tuple[str, ...] = (),
    presets: str | None = None,
    trials: int | None = None,
    jobs: int = 1,
    checkout: Path = Path(),
) -> Swept:
    """Try every combination of `overrides` (`finetuning.seed=1,2`) and `presets` (`full,lora`), or as many
    `trials` as optuna is to propose, `jobs` at a time; evaluate the best by its validation figure.

    A trial that fails is among the results, with its reason. Writes the checkout's reports/sweep.html.
    """
    from tasks.tracking import sweeps

    environment.quiet()
    checkout = checkout.resolve()
    space = axes.space(parameters.load(checkout / "params.yaml"), presets, overrides)
    proposals = search.proposals(space, trials, jobs)
    batch = proposals.next()
    asked = {axis.key: axis.told for axis in space.axes} | {"trials": str(trials or len(batch))}
    with _workspace(checkout, batch[0].params) as root:
        _bring_up_to_date(root, before_learning(root))
        with sweeps.open_sweep(_name(space, trials), asked, space.base, checkout) as run:
            ground = Ground(checkout, root, batch[0].params, run.id)
            tried, results = _try_all(ground, proposals, batch, jobs)
            swept = _judge(ground, space, tried, results)
            run.metrics(_headline(swept))
            run.file(checkout / "reports" / PAGE)
    if swept.root is None:
        workspace.remove(checkout, root)
    return swept


def before_learning(root: Path) -> list[str]:
    """The stages that come before fine-tuning."""
    order = in_order(root)
    return order[: order.index(LEARNED)]


def _name(space: Space, trials: int | None) -> str:
    asked = [space.base.contents(), [(axis.key, axis.told) for axis in space.axes], trials]
    return files.digest_json(asked).removeprefix("sha256:")[:8]


@contextmanager
def _workspace(checkout: Path, params: Params) -> Iterator[Path]:
    """It stays where the body ends well."""
    root = workspace.create(checkout, params)
    try:
        yield root
    except BaseException:
        workspace.remove(checkout, root)
        raise


def _bring_up_to_date(root: Path, stages: Sequence[str]) -> None:
    for stage in stages:
        stage_task(stage)(stage, root, "subprocess")


def _try_all(
    ground: Ground, proposals: Proposals, batch: list[Trial], jobs: int
) -> tuple[dict[str, Trial], list[Result]]:
    """Trials by name, and what became of them in the order of their proposal."""
    tried: dict[str, Trial] = {}
    results: list[Result] = []
    runner = ProcessPoolTaskRunner(max_workers=jobs, initializer=worker.get_ready, initargs=(jobs,))
    with _server_for_all(), runner, _none_left_working():
        while batch:
            tried |= {trial.name: trial for trial in batch}
            found = _try_together(ground, batch, runner)
            proposals.hear(found)
            results += found
            batch = proposals.next()
    return tried, results


@contextmanager
def _server_for_all() -> Iterator[None]:
    """A Prefect server that was started for this process serves those of the trials too."""
    with get_client(sync_client=True) as client, temporary_settings({PREFECT_API_URL: str(client.api_url)}):
        yield


@contextmanager
def _none_left_working() -> Iterator[None]:
    """Whatever ends the flow ends the trials that run, once their last step is saved."""
    try:
        yield
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _try_together(ground: Ground, batch: Sequence[Trial], runner: ProcessPoolTaskRunner) -> list[Result]:
    """One result a trial, in the order of `batch`."""
    changed = forecast.touched(ground.root, ground.base, [trial.params for trial in batch])
    stages = [[*(s for s in names if s in ground.before), LEARNED] for names in changed]
    given = {"trial": list(batch), "stages": stages, "ground": unmapped(ground)}
    futures: list[PrefectFuture[Any]] = [*runner.map(try_out, given)]
    places = {future.task_run_id: place for place, future in enumerate(futures)}
    found: dict[int, Result] = {}
    for future in as_completed(futures):
        place = places[future.task_run_id]
        found[place] = _result(batch[place], future)
        log.info("%d of %d: %s", len(found), len(batch), _told(found[place]))
    return [found[place] for place in range(len(batch))]


def _result(trial: Trial, future: PrefectFuture[Any]) -> Result:
    try:
        answer = future.result(raise_on_failure=False)
    except BrokenExecutor:
        answer = "its process was killed, as where memory is short; run again, with fewer --jobs"
    if isinstance(answer, Result):
        return answer
    failure = str(answer) or type(answer).__name__
    return Result(trial.name, trial.changes, {}, 0.0, cached=False, failure=failure)


def _told(result: Result) -> str:
    what = ", ".join(f"{key}={value}" for key, value in result.changes.items()) or result.trial
    if result.failure:
        return f"{what}: failed: {result.failure}"
    figures = ", ".join(f"{name} {value:.4f}" for name, value in result.figures.items())
    return f"{what}: validation {figures}, {result.seconds:.1f} s{', from cache' * result.cached}"


@task(name="trial", task_run_name="trial {trial.name}")
def try_out(trial: Trial, stages: list[str], ground: Ground) -> Result:
    """Fine-tune in a workspace that vanishes afterwards: what was made stays in DVC's cache."""
    with worker.stoppable():
        return _fine_tune(trial, stages, ground)


def _fine_tune(trial: Trial, stages: Sequence[str], ground: Ground) -> Result:
    from tasks.tracking import sweeps

    begun = time.monotonic()
    root = workspace.create(
        ground.checkout, trial.params, like=ground.root, bring=[s for s in ground.before if s != "sources"]
    )
    try:
        outcomes = [reproduce(stage, root, "inprocess", lambda message: None) for stage in stages]
        figures = dict(TrainedModel.load(root).phases[-1]["figures"])
        sweeps.adopt(ground.run, figures, trial.params, root)
    finally:
        workspace.remove(ground.checkout, root)
    seconds = time.monotonic() - begun
    return Result(trial.name, trial.changes, figures, seconds, cached=not outcomes[-1].ran)


def _judge(ground: Ground, space: Space, tried: dict[str, Trial], results: Sequence[Result]) -> Swept:
    """The best by its validation figure sees the test rows, in the workspace that was the trials' ground."""
    order = ranked(results, space.select)
    winner = None if order[0].failure else tried[order[0].trial]
    if winner:
        (ground.root / "params.yaml").write_text(parameters.dump(winner.params), encoding="utf-8")
        _bring_up_to_date(ground.root, [*ground.before, LEARNED, TESTED])
    page = report.Facts(
        ranked=order,
        select=space.select,
        tested=Evaluation.load(ground.root).metrics["model"] if winner else {},
        confidence=space.base.evaluation.confidence,
        shared=" ".join(f"-S {axis.key}={axis.values[0]}" for axis in space.axes if not axis.varies),
        remedy=winner.command if winner else "",
    )
    files.write_text(ground.checkout / "reports" / PAGE, report.render(page))
    return Swept(tuple(order), space.select, winner, ground.root if winner else None)


def _headline(swept: Swept) -> dict[str, float]:
    failed = sum(bool(result.failure) for result in swept.results)
    counted = {"trials": float(len(swept.results)), "trials.failed": float(failed)}
    best = {} if swept.winner is None else swept.results[0].figures
    return counted | {f"validation.{name}": value for name, value in best.items()}
