"""Job variables against the workers that are installed; the shipped templates against what those make of them."""

import asyncio
import json
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from docker.models.containers import _create_container_args
from docker.types import HostConfig
from kubernetes_asyncio import client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from flows.commands import job_variables, reach
from tasks import params as parameters

REPOSITORY = Path(__file__).parents[3]
DEFINED = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))["definitions"]
KUBERNETES = json.loads((REPOSITORY / "pools" / "kubernetes.json").read_text(encoding="utf-8"))
MISPLACED = {"parallelism", "completions"}  # Prefect's worker demands both where Kubernetes passes them by
KINDS = {"docker": DockerWorker.get_default_base_job_template(), "kubernetes": KUBERNETES}


@pytest.fixture(scope="module")
def installed():
    return job_variables.installed(REPOSITORY)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A prefect.yaml alone, whose text a test may change, and no server."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "prefect.yaml").write_text((REPOSITORY / "prefect.yaml").read_text(encoding="utf-8"))
    return tmp_path


def checked(root):
    return {check.name: check for check in reach.prefect(root, None)}["job variables"]


def test_the_shipped_deployments_need_no_server_to_be_checked(checkout):
    assert checked(checkout).ok
    assert checked(checkout).finding == "known to docker, kubernetes, process"


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("job_variables:\n      env", "job_variables:\n      working_dri: /tmp\n      env", "process: unknown working_dri: did you mean working_dir?"),
        ("job_variables:\n      env", "job_variables:\n      imgae: regraft\n      env", "unknown imgae: did you mean image?"),
        ("job_variables:\n      env", "job_variables:\n      volumse: [a]\n      env", "docker: unknown volumse: did you mean volumes?"),
        ("job_variables:\n      env", "job_variables:\n      gpus: 1\n      env", "unknown gpus"),
        ("job_variables:\n      env", "job_variables:\n      stream_output: loud\n      env", "stream_output: 'loud' is not"),
        ("env: &quiet", "work_dir: &quiet", "unknown work_dir"),
    ],
    ids=["misspelt", "of containers", "of docker alone", "of no worker", "ill-typed", "for env"],
)  # fmt: skip
def test_what_no_worker_takes_is_a_fault_of_its_deployment(checkout, before, after, told):
    path = checkout / "prefect.yaml"
    path.write_text(path.read_text().replace(before, after, 1))
    check = checked(checkout)
    assert not check.ok
    assert "deployment nightly, " in check.finding
    assert told in check.finding
    assert "prefect.yaml" in check.remedy


def test_a_template_of_the_checkout_counts_where_nobody_can_be_asked(checkout):
    path = checkout / "prefect.yaml"
    path.write_text(path.read_text().replace("work_pool: *cpu", "work_pool: *kubernetes"))
    assert "unknown claim" in checked(checkout).finding
    (checkout / "pools").mkdir()
    (checkout / "pools" / "mine.json").write_text(json.dumps(KUBERNETES))
    assert checked(checkout).ok
    path.write_text(path.read_text().replace("      claim: regraft", "      # no claim"))
    assert "deployment nightly, pools/mine.json: claim is missing" in checked(checkout).finding


def test_what_prefect_fills_in_later_is_not_judged_by_its_type(installed):
    variables = {"claim": "c", "gpus": "{{ $GPUS }}"}
    assert not job_variables.faults(variables, installed["pools/kubernetes.json"])
    assert job_variables.faults(variables | {"gpus": "two"}, installed["pools/kubernetes.json"])


def test_a_pool_without_variables_says_nothing():
    assert not job_variables.faults({"anything": 1}, job_variables.of_template({}))


@pytest.mark.parametrize("kind", KINDS)
def test_the_variables_to_paste_are_those_of_their_own_kind(kind):
    schema = job_variables.of_template(KINDS[kind])
    assert not job_variables.faults(DEFINED[kind]["job_variables"], schema)
    wrong = dict(DEFINED[kind]["job_variables"], image=1)
    assert [fault.told.partition(":")[0] for fault in job_variables.faults(wrong, schema)] == ["image"]


def prepared(configuration, kind, **without):
    """What a worker makes of the shipped variables; the server would be asked for blocks, of which there are none."""
    values = {**DEFINED[kind]["job_variables"], **without}
    given = {name: value for name, value in values.items() if value is not None}
    nobody = PrefectClient("http://127.0.0.1:9/api")
    found = asyncio.run(configuration.from_template_and_values(KINDS[kind], given, client=nobody))
    found.prepare_for_flow_run(FlowRun.model_validate({"flow_id": "0" * 32, "name": "small"}))
    return found


class Unasked:
    """In place of a Docker daemon, which is asked for its version alone."""

    class api:
        base_url = "http+unix://"

    def version(self):
        return {"Version": "28.0.0"}


def test_docker_would_mount_the_checkout_and_hand_over_the_gpu():
    made = prepared(DockerWorkerJobConfiguration, "docker")
    settings = DockerWorker._build_container_settings(DockerWorker.__new__(DockerWorker), Unasked(), made)
    settings["version"] = "1.47"
    sent = _create_container_args(settings)
    host = sent["host_config"]
    assert isinstance(host, HostConfig)
    assert host["Binds"] == ["/srv/regraft:/srv/regraft"]
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["0"]
    assert host["ShmSize"] == 1024**3
    assert (sent["user"], sent["working_dir"]) == ("1000:1000", "/srv/regraft")
    assert sent["environment"]["REGRAFT_CHECKOUT"] == sent["environment"]["PYTHONPATH"] == "/srv/regraft"


def strangers(value, kind, place=""):
    """Names in a manifest that Kubernetes' own description of `kind` has not."""
    if kind.startswith("list["):
        return [s for n, one in enumerate(value) for s in strangers(one, kind[5:-1], f"{place}[{n}]")]
    if not hasattr(client, kind):
        return []
    model = getattr(client, kind)
    types = {theirs: model.openapi_types[ours] for ours, theirs in model.attribute_map.items()}
    unknown = [f"{place}.{name}" for name in value.keys() - types.keys()]
    return unknown + [
        s for name in value.keys() & types.keys() for s in strangers(value[name], types[name], f"{place}.{name}")
    ]  # fmt: skip


def test_kubernetes_would_know_every_word_of_the_job():
    job = prepared(KubernetesWorkerJobConfiguration, "kubernetes").job_manifest
    assert {place.rpartition(".")[2] for place in strangers(job, "V1Job")} == MISPLACED
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "regraft"}
    assert container["volumeMounts"][0] == {"name": "checkout", "mountPath": "/srv/regraft"}
    assert container["workingDir"] == "/srv/regraft"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["securityContext"] == {"runAsUser": 1000, "fsGroup": 1000}
    assert {"name": "PYTHONPATH", "value": "/srv/regraft"} in container["env"]


def test_kubernetes_is_asked_for_no_gpu_where_none_is_wanted():
    job = prepared(KubernetesWorkerJobConfiguration, "kubernetes", gpus=None).job_manifest
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]


def test_the_template_for_kubernetes_is_the_workers_own_and_more():
    theirs = KubernetesWorker.get_default_base_job_template()["variables"]["properties"]
    ours = KUBERNETES["variables"]["properties"]
    assert ours.keys() - theirs.keys() == {"claim", "directory", "gpus", "user"}
    assert {name: ours[name] for name in theirs} == theirs


def test_what_the_image_takes_is_there():
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*) /", text, flags=re.M) for name in line.split()]
    assert {"pyproject.toml", "flows", "tasks"} <= set(copied)
    assert all((REPOSITORY / name).exists() for name in copied)
    about = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (extras,) = re.findall(r"/regraft\[(.*)\]", text)
    assert set(extras.split(",")) <= about["optional-dependencies"].keys()


def test_the_shipped_definitions_are_no_deployments():
    pools = {one.pool for one in parameters.deployments((REPOSITORY / "prefect.yaml").read_text())}
    assert pools == {"cpu", "gpu"}
