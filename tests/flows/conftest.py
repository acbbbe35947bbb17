"""A small project that is real in every part: a git clone with DVC, a table, and a checkpoint that learns."""

import csv
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest
from filelock import FileLock

from tasks import environment
from tasks import params as parameters

REPOSITORY = Path(__file__).parents[2]
WORDS = {
    "good": ["lovely", "great", "superb", "delightful", "wonderful", "charming", "brilliant", "perfect"],
    "bad": ["awful", "dreadful", "broken", "horrible", "miserable", "useless", "rotten", "terrible"],
}
FILLERS = [
    "the",
    "service",
    "food",
    "room",
    "staff",
    "train",
    "phone",
    "film",
    "book",
    "garden",
    "music",
    "price",
    "weather",
    "answer",
]


def environ() -> dict[str, str]:
    """The environment in which a user's commands run: this interpreter first, no telemetry, no server."""
    absent = {"MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME", "DVC_EXP_NAME", "DVC_STAGE"}
    found = {name: value for name, value in os.environ.items() if name not in absent}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    people = {
        f"GIT_{role}_{key}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    return {**found, **environment.QUIET, **people, "PATH": path, "HF_HUB_OFFLINE": "1", "CI": "true"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    wanted = environ()
    for name in set(os.environ) - wanted.keys():
        monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    return os.environ


@pytest.fixture(scope="session")
def seed_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as cloned and set up, before any run; the directory name has a space in it."""
    root = tmp_path_factory.mktemp("seed") / "a project"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        skipped = name.startswith(("tests/", "benchmarks/")) or name == "dvc.lock"  # of runs in this checkout
        if not skipped and (REPOSITORY / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, root / name)
    write_table(root / "reviews.csv", 240)
    _write_checkpoint(root / "base")
    (root / "params.yaml").write_text(_params(), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def seed_reproduced(seed_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after one `dvc repro`, committed. Made once, also where several processes run the tests."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    root = shared / "reproduced" / "a project"
    with FileLock(shared / "reproduced.lock"):
        if not (shared / "reproduced.done").exists():
            shutil.copytree(seed_project, root)
            _run(root, "git", "init", "-q", "-b", "main")
            _leave_untracked(root)
            _run(root, "git", "add", "-A")
            _run(root, "git", "commit", "-q", "-m", "Start")
            _run(root, "dvc", "repro")
            _run(root, "git", "add", "-A")
            _run(root, "git", "commit", "-q", "-m", "Reproduce")
            (shared / "reproduced.done").touch()
    return root


def _run(root: Path, *words: str) -> None:
    done = subprocess.run(words, cwd=root, env=environ(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


@pytest.fixture
def reproduced(seed_reproduced: Path, tmp_path: Path, variables: Mapping[str, str]) -> Path:
    """A copy of the reproduced project, where `command` works too."""
    root = tmp_path / "a project"
    shutil.copytree(seed_reproduced, root, symlinks=True)
    return root


@pytest.fixture
def project(seed_project: Path, tmp_path: Path, variables: Mapping[str, str]) -> Path:
    """A fresh copy, committed to git."""
    root = tmp_path / "a project"
    shutil.copytree(seed_project, root)
    _run(root, "git", "init", "-q", "-b", "main")
    _leave_untracked(root)
    _run(root, "git", "add", "-A")
    _run(root, "git", "commit", "-q", "-m", "Start")
    return root


@pytest.fixture(scope="module")
def started_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Mapping[str, str], None, None]:
    """A real Prefect server on a free port, and the variables by which a process finds it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder, address = tmp_path_factory.mktemp("prefect"), f"http://127.0.0.1:{port}/api"
    found = {"PREFECT_HOME": str(folder), "PREFECT_API_URL": address}
    words = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environ() | found)
        try:
            _answers(f"{address}/health", patience=180)
            yield found
        finally:
            process.terminate()
            process.wait(timeout=60)


def _answers(address: str, *, patience: float) -> None:
    ends = time.monotonic() + patience
    while time.monotonic() < ends:
        try:
            with urllib.request.urlopen(address, timeout=10):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"the Prefect server did not answer within {patience} s")


@pytest.fixture
def prefect_server(
    started_server: Mapping[str, str], variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> str:
    """The address of a real Prefect server that commands of this test talk to."""
    for name, value in started_server.items():
        monkeypatch.setenv(name, value)
    return started_server["PREFECT_API_URL"]


def _leave_untracked(root: Path) -> None:
    """A user's table and checkpoint are rarely in git."""
    (root / ".git" / "info" / "exclude").write_text("/reviews.csv\n/base/\n/labelled.csv\n")


@pytest.fixture
def command(tmp_path: Path, variables: Mapping[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command in the project as a user would; a failure shows its output."""

    def run(
        *words: str, code: int = 0, cwd: Path = tmp_path / "a project"
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(list(words), cwd=cwd, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def write_table(path: Path, rows: int, *, seed: int = 0) -> None:
    """Sentences whose label follows from one word: a model that learns is told from one that does not."""
    chance = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "verdict"])
        for number in range(rows):
            label = "good" if number % 2 else "bad"
            words = chance.sample(FILLERS, 6)
            words.insert(chance.randrange(6), chance.choice(WORDS[label]))
            writer.writerow([f"{' '.join(words)} {number}", label])


def _write_checkpoint(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *FILLERS, *WORDS["good"], *WORDS["bad"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"


def _params() -> str:
    shipped = parameters.load(REPOSITORY / "params.yaml")
    changes = [
        "sources.text.path=reviews.csv", "sources.text.columns={text: review, label: verdict}",
        "sources.checkpoint.path=base", "promotion.model=reviews", "promotion.gate.must_beat=[majority, frozen]", "encoding.max_length=32",
        "preparation.subset={train: 120, validation: 30, test: 60}",
        "finetuning.phases=[{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}, "
        "{name: whole, depth: all, epochs: 12, learning_rate: 5.0e-3}]",
        "finetuning.save_every=5", "finetuning.batch_size=16", "evaluation.resamples=100",
    ]  # fmt: skip
    return parameters.dump(parameters.override(shipped, changes))


DECISIONS: Mapping[str, Mapping[str, object]] = {  # registered name -> what its version has chosen
    "reviews": {},
    "careful": {"temperature": 2.0, "abstain_below": 0.999},
    "confused": {"thresholds": [0.5]},
}


@pytest.fixture(scope="session")
def champions(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, tiny_classifier: Callable[..., Path]
) -> Path:
    """A root with a champion under each name of DECISIONS, all with the same weights. Not to be changed."""
    from mlflow import MlflowClient

    from tasks.tracking import server
    from tasks.tracking.registry import Registry

    root = tmp_path_factory.mktemp("registry") / "a project"
    (root / ".regraft").mkdir(parents=True)
    shutil.copyfile(empty_database, root / ".regraft" / "mlflow.db")
    directory = tiny_classifier(root / "model", seed=3)
    _make_surer(directory / "model.safetensors")
    known = {"labels": ["bad", "good"], "max_length": 16, "kind": "label", "clean": ["html", "whitespace"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client = MlflowClient(tracking_uri=server.uri(root))
        run = client.create_run(client.create_experiment("tests", str(root / ".regraft" / "mlartifacts")))
        for name, decision in DECISIONS.items():
            registry, said = Registry(root, name), known | ({"decision": decision} if decision else {})
            version = registry.register(
                directory, run_id=run.info.run_id, max_length=16, kind="label", reading={},
                tags={f"regraft.{key}": json.dumps(value) for key, value in said.items()},
            )  # fmt: skip
            with registry.locked():
                registry.promote(version.number, reason="first", by="ann")
    return root


def _make_surer(path: Path) -> None:
    """A random head hardly tells two texts apart."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["classifier.weight"] *= 300
    save_file(tensors, path, {"format": "pt"})
