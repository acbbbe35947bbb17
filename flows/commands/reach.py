"""What of the servers that a project names can be reached: Prefect with its pools, DVC's remotes.

`python -m flows.commands.reach ROOT REMOTE` lists a remote, in a process of its own: each kind of storage
fails in its own way, some of them after minutes.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dvc.repo import Repo
from httpx import HTTPError

from flows.commands import job_variables
from flows.commands.check import Check
from tasks import params as parameters
from tasks.errors import ParamsError
from tasks.params import Deployment

if TYPE_CHECKING:  # slow to import, and not always needed
    from prefect.client.orchestration import SyncPrefectClient

PATIENCE = 10.0  # seconds for an answer of Prefect's
LISTING = 20.0  # seconds for a remote, the start of a process included
LONGEST = 300  # characters of somebody else's message
ELSEWHERE = "flows.pipeline.finetune"
SHIPPED = "`git checkout prefect.yaml` brings the shipped one back"
NONE = "PREFECT_API_URL is not set: `regraft run` starts a server of its own"


def prefect(root: Path, finetuning: str | None) -> Iterator[Check]:
    """The server, and for each pool that prefect.yaml names whether deployments and a worker are there; of
    one for fine-tuning elsewhere only where `finetuning` (operations.finetuning) is it. Job variables are
    compared with what the pool takes, or, where no server is named, with what any worker takes."""
    if not (address := os.environ.get("PREFECT_API_URL")):
        yield Check("prefect", True, NONE)
        yield from _unserved(root)
        return
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with (
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(httpx_settings={"timeout": PATIENCE}, sync_client=True) as client,
    ):
        if error := client.api_healthcheck():
            remedy = "`prefect server start`, correct PREFECT_API_URL, or unset it"
            yield Check("prefect", False, f"{address}: {_short(str(error) or type(error).__name__)}", remedy)
            return
        try:
            yield Check("prefect", True, f"{address}, version {client.api_version()}")
            yield from _pools(root, client, finetuning)
        except HTTPError as error:
            yield Check("prefect", False, _short(str(error)), "look into the log of the server")


def _unserved(root: Path) -> Iterator[Check]:
    try:
        wanted = _deployments(root)
    except (FileNotFoundError, ParamsError) as error:
        yield Check("deployments", False, str(error), SHIPPED)
        return
    known = job_variables.installed(root)
    yield job_variables.check(wanted, dict.fromkeys((one.pool for one in wanted), known))


def _deployments(root: Path) -> list[Deployment]:
    return parameters.deployments((root / "prefect.yaml").read_text(encoding="utf-8"))


def _pools(root: Path, client: "SyncPrefectClient", finetuning: str | None) -> Iterator[Check]:
    try:
        wanted = _deployments(root)
    except (FileNotFoundError, ParamsError) as error:
        yield Check("deployments", False, str(error), SHIPPED)
        return
    known = {one.name for one in client.read_deployments()}
    missing = [one.name for one in wanted if one.name not in known]
    told = f"not there: {', '.join(missing)}" if missing else ", ".join(one.name for one in wanted)
    yield Check("deployments", not missing, told, "`prefect --no-prompt deploy --all`")
    idle = [one for one in wanted if one.entrypoint == ELSEWHERE and f"finetune/{one.name}" != finetuning]
    for pool in dict.fromkeys(one.pool for one in wanted if one not in idle):
        yield _pool(pool, client)
    yield job_variables.check(wanted, {pool: _schema(pool, client) for pool in {one.pool for one in wanted}})


def _schema(pool: str, client: "SyncPrefectClient") -> dict[str, job_variables.Schema]:
    """Nothing of a pool that is not there: that is told by itself."""
    from prefect.exceptions import ObjectNotFound

    try:
        about = client.read_work_pool(pool)
    except ObjectNotFound:
        return {}
    return {about.type: job_variables.of_template(about.base_job_template)}


def _pool(name: str, client: "SyncPrefectClient") -> Check:
    from prefect.exceptions import ObjectNotFound

    label = f"pool {name}"
    try:
        about = client.read_work_pool(name)
    except ObjectNotFound:
        return Check(label, False, "not there", f"`prefect work-pool create {name} --type process`")
    if about.is_paused:
        return Check(label, False, "paused", f"`prefect work-pool resume {name}`")
    workers = client.read_workers_for_work_pool(name)
    online = [worker.name for worker in workers if worker.status.value == "ONLINE"]
    found = ", ".join(online) or f"no worker is online, of {len(workers)} that were"
    return Check(label, bool(online), found, f"`prefect worker start --pool {name}`")


def remotes(root: Path) -> Iterator[Check]:
    """Each of DVC's remotes, by listing it."""
    with Repo(str(root)) as repo:
        places = {name: about["url"] for name, about in repo.config["remote"].items()}
    for name, place in places.items():
        yield _remote(root, name, place)


def _remote(root: Path, name: str, place: str) -> Check:
    label, remedy = (
        f"remote {name}",
        f"`dvc remote modify {name} …` for address and credentials; is the network there?",
    )
    place = re.sub("//[^/@]*@", "//", place)  # never a password
    words = [sys.executable, "-m", "flows.commands.reach", str(root.resolve()), name]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LISTING, check=False)
    except subprocess.TimeoutExpired:
        return Check(label, False, f"{place} did not answer within {LISTING:g} s", remedy)
    said = _short((done.stderr.strip() or "no reason given").splitlines()[-1])
    return Check(label, not done.returncode, f"{place}{f': {said}' if done.returncode else ''}", remedy)


def _list(root: Path, name: str) -> None:
    """Raises whatever the storage does; a place that nobody has pushed to yet is made by the first push."""
    with Repo(str(root)) as repo:
        remote = repo.cloud.get_remote(name)
        try:
            remote.fs.ls(remote.path, detail=False)
        except FileNotFoundError:
            if remote.fs.protocol == "local" and not Path(remote.path).parent.is_dir():
                raise


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


if __name__ == "__main__":
    _list(Path(sys.argv[1]), sys.argv[2])
