"""What Prefect keeps of a run for people: words, progress and figures of its stages, and what came of it."""

import contextvars
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogHandler

from flows.checkout.stage import Message
from flows.commands.show import NAMES
from tasks.artifacts import SPLITS, Evaluation, PreparedText, Promotion

log = logging.getLogger(__name__)
_server = APILogHandler()  # gives each line the ids of its flow run and task run
_server.addFilter(lambda record: bool(FlowRunContext.get() or TaskRunContext.get()))


def keep_logs() -> None:
    """From now on Prefect keeps what our own code logs inside a run; what DVC does, the flow says."""
    logging.getLogger("dvc").setLevel(logging.WARNING)
    for name in ("flows", "tasks"):
        logger = logging.getLogger(name)
        logger.setLevel(logger.level or logging.INFO)
        logger.addHandler(_server)


class Keeper:
    """Gives each message of a stage to Prefect, for the task run that is in force where this is made."""

    def __init__(self, stage: str, root: Path) -> None:
        self._stage, self._root = stage, root
        self._bars: dict[str, UUID] = {}
        self._run: Message = {"run_id": "", "uri": ""}
        self._context = contextvars.copy_context()  # a listener's thread has no task run of its own

    def __call__(self, message: Message) -> None:
        with _without_fail(self._stage):
            self._context.run(self._take, message)

    def _take(self, message: Message) -> None:
        match message["kind"]:
            case "log":
                _server.handle(_record(message))
            case "progress":
                self._bar(message)
            case "run":
                self._link(message)
            case "summary":
                self._figures(message)

    def _bar(self, message: Message) -> None:
        if message["total"] is None:  # a table is read through before its rows are known: no share to show
            return
        title, share = message["description"], 100.0 * message["done"] / message["total"]
        if title in self._bars:
            update_progress_artifact(self._bars[title], progress=share)
        else:
            made = create_progress_artifact(progress=share, key=f"{self._stage}-progress", description=title)
            assert isinstance(made, UUID)
            self._bars[title] = made

    def _link(self, message: Message) -> None:
        self._run = message
        log.info("%s: running, MLflow run %s", self._stage, message["run_id"] or "not known yet")
        if _web(message["uri"]):
            create_link_artifact(message["uri"], link_text="MLflow run", key=f"{self._stage}-run")

    def _figures(self, message: Message) -> None:
        figures = [{"figure": name, "value": value} for name, value in message["figures"].items()]
        if figures:
            about = f"What {self._stage} made, in figures"
            create_table_artifact(figures, key=f"{self._stage}-figures", description=about)
        if lines := summary(self._stage, self._root, self._run):
            text = "\n".join([f"## {self._stage}", *lines])
            about = f"Where {self._stage} is told"
            create_markdown_artifact(text, key=f"{self._stage}-summary", description=about)


def summary(stage: str, root: Path, run: Message) -> list[str]:
    """Where a stage that has just run is told of, as Markdown: its MLflow run and its page, if it has any.

    `run` names the run by `run_id` and `uri`, both empty where it has none.
    """
    uri, lines = run["uri"], []
    if uri:
        lines.append(f"- MLflow run [{run['run_id']}]({uri})" if _web(uri) else _local(run))
    for page in (root / "reports" / f"{stage}.{ending}" for ending in ("html", "md")):
        if page.exists():
            there = f" or [in MLflow]({uri}/artifacts/{quote(page.name)})" if _web(uri) else ""
            lines.append(f"- Report `{page}` on the worker's machine{there}")
    return lines


def _local(run: Message) -> str:
    return f"- MLflow run `{run['run_id'] or 'not known yet'}` in `{run['uri']}`"


def sum_up(root: Path) -> None:
    """The verdict and the table of contestants of the pipeline in `root`, as an artifact of the flow run."""
    records = (Evaluation.load(root), Promotion.load(root), PreparedText.load(root))
    with _without_fail("the results"):
        create_markdown_artifact(
            "\n\n".join(results(root, *records)), key="results", description="What the pipeline has come to"
        )


def results(root: Path, evaluation: Evaluation, promotion: Promotion, text: PreparedText) -> Iterator[str]:
    """Paragraphs of Markdown."""
    yield f"## {promotion.outcome}: {promotion.model} version {promotion.version}"
    yield "\n".join(f"- {reason}" for reason in promotion.reasons)
    yield _table(evaluation)
    rows = ", ".join(f"{text.rows[split]:,} {split}" for split in SPLITS)
    yield f"Rows: {rows}. In brackets 95 % bootstrap intervals."
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    yield f"Reports in `{root / 'reports'}`" + (f", runs in [MLflow]({server})" if _web(server) else "")


def _table(evaluation: Evaluation) -> str:
    metrics = sorted(next(iter(evaluation.metrics.values())))
    lines: list[Sequence[str]] = [("contestant", *(name.replace("_", " ") for name in metrics))]
    lines.append(["---", *("---:" for _ in metrics)])
    for contestant in sorted(evaluation.metrics, key=[*NAMES, *evaluation.metrics].index):
        found = (evaluation.metrics[contestant][metric] for metric in metrics)
        cells = (f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]" for one in found)
        lines.append([NAMES.get(contestant, contestant), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _record(message: Message) -> logging.LogRecord:
    said = {"name": message["logger"], "levelno": message["level"], "msg": message["text"]}
    return logging.makeLogRecord(said)


@contextmanager
def _without_fail(what: str) -> Iterator[None]:
    """A picture less is no reason to stop."""
    try:
        yield
    except (PrefectException, HTTPError) as error:
        log.warning("%s: Prefect did not take an artifact: %s", what, error)


def _web(uri: str) -> bool:
    return uri.startswith("http")
