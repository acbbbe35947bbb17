"""`regraft forget`: take rows out of all that regraft made, and keep a digest by which none comes back.

The steps come in an order in which each may be the last: asked again, the same command does the rest.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import polars as pl
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo

from flows.checkout import places, workspace
from flows.checkout.stage import reproduce
from tasks import environment, files, references
from tasks import params as parameters
from tasks.artifacts import PreparedText
from tasks.errors import InputError, RegraftError
from tasks.params import TextSource
from tasks.stages import preparation
from tasks.text import identities
from tasks.text.reading import erase

MADE_AGAIN = ("sources", "preparation", "vocabulary", "encoding")  # what holds texts, words or token ids
WITHDRAWN = "evaluation"  # it shows texts, and can only be made again by training again
MADE = r"^[0-9a-f]{16}-\d+$"  # an id that was made from a row's content
STEM = 16  # characters of such an id that its repetitions share
RESUME = Path(".regraft") / "resume"
ARTIFACTS = Path(".regraft") / "mlartifacts"
SIMILAR = 10_000  # ids among which the one meant is looked for


@dataclass(frozen=True)
class Request:
    """What is to be forgotten, and sentences about it."""

    digests: frozenset[str]
    told: tuple[str, ...]


def named(ids: Iterable[str], listed: Path | None) -> tuple[str, ...]:
    """`ids` and the lines of the file `listed`, each once. Raises InputError where that is none."""
    lines: list[str] = []
    if listed is not None:
        if not listed.is_file():
            raise InputError(f"no such file: {listed}")
        lines = listed.read_text(encoding="utf-8").splitlines()
    found = tuple(dict.fromkeys(id for id in (*ids, *lines) if id.strip()))
    if not found:
        raise InputError("name the rows to forget: --ids ID, or --file FILE with one id a line")
    return found


def resolve(root: Path, ids: Sequence[str]) -> Request:
    """Find the rows of `ids` in data/preparation, or among what is forgotten already. Changes nothing.

    Raises InputError naming every id that is in neither, ArtifactError where preparation has not run.
    """
    if (home := environment.home(root)) != root.resolve():
        raise InputError(f"{root} is a workspace: forget in its checkout, --root {home}")
    has_ids = parameters.load(root / "params.yaml").sources.text.id is not None
    before = preparation.read_forgotten(root / preparation.FORGOTTEN)
    held = _held(root, ids)
    found = {id: _digests(id, held.get(id, []), has_ids, before) for id in ids}
    if missing := [id for id in ids if not found[id]]:
        PreparedText.load(root)
        names = ", ".join(f"{id!r}{_similar(id, root)}" for id in missing)
        raise InputError(f"data/preparation holds no row of the id {names}; nothing was done")
    told = [_told(id, held, has_ids, found[id] <= before) for id in ids]
    return Request(frozenset().union(*found.values()), tuple(told))


def _held(root: Path, ids: Sequence[str]) -> dict[str, list[str]]:
    """The stage that wrote each row of `ids` and of their repetitions, "" where it stays, by id."""
    wanted = pl.Series([*ids], dtype=pl.String)
    stems = wanted.filter(wanted.str.contains(MADE)).str.slice(0, STEM)
    is_meant = pl.col("id").is_in(wanted.implode()) | (
        pl.col("id").str.contains(MADE) & pl.col("id").str.slice(0, STEM).is_in(stems.implode())
    )
    found: dict[str, list[str]] = {}
    for path, stage in _tables(root).items():
        rows = pl.scan_parquet(path).select("id", stage.alias("stage")).filter(is_meant).collect()
        for id, name in rows.iter_rows():
            found.setdefault(id, []).append(name)
    return found


def _tables(root: Path) -> dict[Path, pl.Expr]:
    """Those of data/preparation that are there, each with what its `stage` is: a failed run leaves none."""
    stages = {"rows": pl.lit(""), "drops": pl.col("step"), "quarantine": pl.col("stage")}
    named = {PreparedText.folder(root) / f"{name}.parquet": stage for name, stage in stages.items()}
    return {path: stage for path, stage in named.items() if path.exists()}


def _digests(id: str, stages: Sequence[str], has_ids: bool, before: frozenset[str]) -> frozenset[str]:
    """Those under which the rows of `id` are forgotten; none where there is no such row, and was none."""
    own, made = identities.digest(id), identities.digest(id[:STEM])
    if not re.match(MADE, id):
        found = {own}
    elif not has_ids:
        found = {made}
    elif stages:  # a row of which no id could be read has one made from its bytes
        found = {own, made} if set(stages) == {"sources"} else {own}
    else:
        found = {own, made} & before
    return frozenset(found if stages else found & before)


def _told(id: str, held: dict[str, list[str]], has_ids: bool, again: bool) -> str:
    if again:
        return f"{id}: forgotten before; what is left of it goes now"
    if has_ids or not re.match(MADE, id):
        return f"{id}: {len(held[id])} row{'s' * (len(held[id]) > 1)}"
    count = sum(len(stages) for other, stages in held.items() if other[:STEM] == id[:STEM])
    if count == 1:
        return f"{id}: 1 row"
    return f"{id}: made from its content, so all {count} rows that say the same are forgotten"


def _similar(id: str, root: Path) -> str:
    half = (len(id) + 1) // 2
    alike = pl.col("id").str.starts_with(id[:half]) | pl.col("id").str.ends_with(id[-half:])
    frames = [pl.scan_parquet(path).select("id").filter(alike).head(SIMILAR) for path in _tables(root)]
    near = get_close_matches(id, pl.concat(frames).collect()["id"].to_list(), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def deletes(root: Path) -> list[str]:
    """What `carry_out` deletes besides the rows themselves, in sentences, to be asked about."""
    found = ["reports and rows of the last evaluation: `regraft run` makes new ones"]
    if _own_cache(root):
        found.append(
            "DVC's cache: every version of data but the present one, also of other branches and runs"
        )
    found += [f"pages of former runs in {ARTIFACTS}: {count}" for count in [len(_pages(root))] if count]
    found += [f"workspace {path.relative_to(root)}" for path in _workspaces(root)]
    return found + ([f"resume points in {RESUME}"] if (root / RESUME).exists() else [])


def carry_out(root: Path, request: Request, *, rewrite: bool) -> Iterator[str]:
    """Forget; yields what was done, and at the end what only others can do.

    With `rewrite` the rows also leave the table itself. Raises InputError before anything is done where this
    cannot be, RegraftError where a step failed: then the same command, given again, does the rest.
    """
    root = root.resolve()
    source = parameters.load(root / "params.yaml").sources.text
    table = references.locate_text(source.path, root=root, revision=source.revision)
    if rewrite:
        _check_table(table, source, root)
    tasks = _places(root)
    _record(root / preparation.FORGOTTEN, request.digests)
    yield f"{preparation.FORGOTTEN} holds their {len(request.digests)} digests: commit it, for all others"
    for page in _pages(root):
        page.unlink()
    for stage in MADE_AGAIN:
        reproduce(stage, root, "subprocess", lambda message: None)
        yield f"{stage}: made again without them"
    yield from _delete_copies(root, tasks)
    yield from _leave_table(table, source, root, request.digests, rewrite=rewrite)
    yield from _beyond(root, table, tasks)


def _places(root: Path) -> list[Path]:
    """Of tasks, each with the dvc.lock that tells what is theirs."""
    tasks = [places.of(root, task) for task in parameters.load(root / "params.yaml").tasks]
    for place in tasks:
        with workspace.visited(place):
            pass
    return tasks


def _check_table(table: Path, source: TextSource, root: Path) -> None:
    if not table.resolve().is_relative_to(root):
        raise InputError(f"{table} lies outside {root}: delete the rows there yourself, without --rewrite")
    erase.check_lines(table, preparation.layout(source))


def _record(target: Path, digests: frozenset[str]) -> None:
    text = target.read_text(encoding="utf-8") if target.exists() else ""
    text += "\n" if text and not text.endswith("\n") else ""
    new = sorted(digests - preparation.read_forgotten(target))
    files.write_text(target, text + "".join(f"{digest}\n" for digest in new))


def _delete_copies(root: Path, tasks: Sequence[Path]) -> Iterator[str]:
    """tasks: places whose present data stay."""
    for path in _workspaces(root):
        if (path / ".git").exists():
            workspace.remove(root, path)
        else:  # it was never finished
            shutil.rmtree(path)
        yield f"deleted: {path.relative_to(root)}"
    shutil.rmtree(root / RESUME, ignore_errors=True)
    try:
        with chdir(root), Repo() as repo:
            _withdraw(repo)
            if _own_cache(root):
                repo.gc(workspace=True, force=True, repos=[str(place) for place in tasks])
                shutil.rmtree(repo.stage_cache.cache_dir, ignore_errors=True)
    except DvcException as error:
        raise RegraftError(
            f"DVC could not delete former data ({error}): give the same command again"
        ) from error
    yield f"deleted: resume points, {WITHDRAWN}, former versions in DVC's cache"


def _withdraw(repo: Repo) -> None:
    """As if it had never run: nothing stays of what it showed, and DVC's cache need not keep it."""
    with repo.lock:
        stage = repo.stage.load_one(name=WITHDRAWN)
        stage.remove_outs()
        Lockfile(repo, LOCK_FILE).remove_stage(stage)


def _own_cache(root: Path) -> bool:
    """A cache outside the checkout may serve other projects, whose data must not go."""
    with Repo(str(root)) as repo:
        return Path(repo.cache.local_cache_dir).resolve().is_relative_to(root.resolve())


def _workspaces(root: Path) -> list[Path]:
    folder = root / workspace.RUNS
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.exists() else []


def _pages(root: Path) -> list[Path]:
    return sorted((root / ARTIFACTS).rglob("*.html"))


def _leave_table(
    table: Path, source: TextSource, root: Path, digests: frozenset[str], *, rewrite: bool
) -> Iterator[str]:
    layout = preparation.layout(source)
    found = erase.places(table, layout, digests)
    if rewrite and found:
        erase.remove_lines(table, layout, {place.line for place in found})
        yield f"{source.path}: {len(found)} rows taken out; `regraft run` takes note of it"
    for place in () if rewrite else found:
        name = source.path if table.is_file() else f"{source.path}/{place.file}"
        yield f"left to you: {name}:{place.line}: delete this row yourself; until then preparation drops it"


def _beyond(root: Path, table: Path, tasks: Sequence[Path]) -> Iterator[str]:
    left = ["models trained on the rows, in data/finetuning and in the registry: `regraft run` trains anew"]
    left += [
        f"task {place.name}: where its table holds such rows too, `regraft run` makes it anew without them"
        for place in tasks
    ]
    left.append("former runs in MLflow: their tables of predictions name test rows by id")
    if os.environ.get("MLFLOW_TRACKING_URI"):
        left.append("former runs on the server of MLFLOW_TRACKING_URI: their pages may show texts")
    with Repo(str(root)) as repo:
        left += [
            f"DVC remote {name}: `dvc gc --workspace --cloud --remote {name}`"
            for name in repo.config["remote"]
        ]
        if not _own_cache(root):
            left.append(
                f"DVC's cache {repo.cache.local_cache_dir}, which other projects may share: "
                "`dvc gc --workspace --projects …` with all of them"
            )
    if table.with_name(f"{table.name}.dvc").exists():
        left.append(f"{table.name} is tracked by DVC: `dvc commit`, then `dvc gc --workspace`")
    if _in_git(root, table):
        left.append(f"git's history of {table.name}: rewriting it is for all who have a clone")
    yield from (f"left to you: {line}" for line in left)


def _in_git(root: Path, table: Path) -> bool:
    """Whether any commit of the checkout knows the table, or a file in its folder."""
    if not table.resolve().is_relative_to(root):
        return False
    words = ["git", "log", "--all", "--max-count=1", "--format=%h", "--", str(table.resolve())]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    return bool(done.stdout.strip())
