"""Small real things that many tests need: a tiny BERT classifier that behaves like a large one."""

import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

REPOSITORY = Path(__file__).parents[1]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell that starts us in the background does that
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the processes of tests shall be interrupted

settings.register_profile("patient", settings.default, deadline=None)  # how busy a machine is proves nothing
settings.load_profile("patient")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imported libraries are a million objects that stay: the garbage collector need not look at them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000)
        gc.enable()


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow puts the code that came with a model before ours, where later processes would find it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_bert() -> Callable[..., Any]:
    """Makes a random BERT classifier in which all sizes differ, so that no mix-up passes by accident."""

    def make(*, labels: int = 3, layers: int = 4, seed: int = 0) -> Any:
        import torch
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=61, hidden_size=24, num_hidden_layers=layers, num_attention_heads=3,
            intermediate_size=40, max_position_embeddings=33, num_labels=labels, pad_token_id=0,
        )  # fmt: skip
        return BertForSequenceClassification(config).eval()

    return make


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Class of transformers or of ours -> a random model of four layers (T5: two and two), all sizes different, whose
    padding token is 0 (RoBERTa: 1)."""

    def make(name: str, *, seed: int = 0, **more: Any) -> Any:
        import torch

        from tasks import architectures

        torch.manual_seed(seed)
        kind = next(kind for kind in SIZES if name.lower().startswith(kind))
        config = {"vocab_size": 61, "num_labels": 3, "pad_token_id": 0, **SIZES[kind], **more}
        model = architectures.find(name)
        if name.endswith("QuestionAnswering"):
            config.pop("num_labels")
        return model(model.config_class(**config)).eval()

    return make


@pytest.fixture
def started() -> Callable[[], list[Any]]:
    """Tells which processes this test has started that are there: others may have left one that tracks
    resources."""
    import psutil

    before = set(psutil.Process().children(recursive=True))
    return lambda: [one for one in psutil.Process().children(recursive=True) if one not in before]


TALL = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 40}
SIZES: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 24, "n_layers": 4, "n_heads": 3, "hidden_dim": 40, "max_position_embeddings": 33},
    "bert": {**TALL, "max_position_embeddings": 33},
    "roberta": {**TALL, "max_position_embeddings": 35, "pad_token_id": 1},
    "gpt2": {"n_embd": 24, "n_layer": 4, "n_head": 3, "n_inner": 40, "n_positions": 33},
    "llama": {
        **TALL, "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 33,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "mixtral": {
        **TALL, "num_attention_heads": 6, "num_key_value_heads": 3, "max_position_embeddings": 33,
        "bos_token_id": 1, "eos_token_id": 2, "num_local_experts": 5, "num_experts_per_tok": 2,
        "router_aux_loss_coef": 0.05,
    },
    "t5": {
        "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3, "num_decoder_layers": 2,
        "decoder_start_token_id": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A database as MLflow creates it, which takes seconds; a copy takes none. All workers share it."""
    from mlflow import MlflowClient

    folder = tmp_path_factory.getbasetemp()
    kept = (folder if worker_id == "master" else folder.parent) / "mlflow.db"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
            MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
            shutil.copyfile(path, kept)
    return kept


@pytest.fixture
def tracked(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Generator[Path, None, None]:
    """A root whose own MLflow database is ready; its name has a space in it."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "a project"
    (root / ".regraft").mkdir(parents=True)
    shutil.copyfile(empty_database, root / ".regraft" / "mlflow.db")
    yield root
    if "mlflow" in sys.modules:  # who has loaded a model from here would go on asking here
        sys.modules["mlflow"].set_tracking_uri(None)


@pytest.fixture(scope="session")
def tiny_classifier(tiny_bert: Callable[..., Any], kept_classifiers: Path) -> Callable[..., Path]:
    """Writes a random classifier with a tokenizer of its own as a transformers directory."""

    def write(target: Path, *, labels: tuple[str, ...] = ("bad", "good"), seed: int = 0) -> Path:
        kept = kept_classifiers / f"{seed} {' '.join(labels)}"
        if not kept.exists():
            make(kept, labels, seed)
        shutil.copytree(kept, target)
        return target

    def make(target: Path, labels: tuple[str, ...], seed: int) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        model = tiny_bert(labels=len(labels), layers=1, seed=seed)
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: place for place, label in enumerate(labels)}
        model.save_pretrained(target)
        words = {
            word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"])
        }
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
            sep_token="[SEP]", model_max_length=33,
        ).save_pretrained(target)  # fmt: skip

    return write


@pytest.fixture
def served(tracked: Path, monkeypatch: pytest.MonkeyPatch) -> Generator["Served", None, None]:
    """A real `mlflow server` on a free port with the tracked database, where runs are now tracked."""
    from tasks.tracking import server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = Served(f"http://127.0.0.1:{port}", tracked, server.uri(tracked))
    found.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    yield found
    found.stop()


@dataclass
class Served:
    address: str
    root: Path
    database: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def artifacts(self) -> Path:
        return self.root / "served artifacts"

    def start(self) -> None:
        port = self.address.rpartition(":")[2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port, "--workers", "1",
             "--backend-store-uri", self.database, "--artifacts-destination", str(self.artifacts)],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            cwd=self.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        for _ in range(600):
            assert self.process.poll() is None, "the server ended"
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the server did not start")

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, 15)
            self.process.wait(timeout=60)


@pytest.fixture(scope="session")
def kept_classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classifiers")


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small tokenizer and its config.json; it asks for padding by itself, as MiniLM's does."""

    def make(words: Sequence[str] = ("one", "two", "three"), **config: Any) -> Path:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
        numbers = {name: number for number, name in enumerate(names)}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        frame = [(name, numbers[name]) for name in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=frame
        )
        tokenizer.enable_padding(length=16, pad_token="[PAD]")
        tokenizer.save(str(folder / "tokenizer.json"))
        special = {f"{name.strip('[]').lower()}_token": name for name in names[:5]}
        about = {"tokenizer_class": "PreTrainedTokenizerFast", "name_or_path": str(folder), **special}
        (folder / "tokenizer_config.json").write_text(json.dumps(about))
        declared = {"model_type": "bert", "max_position_embeddings": 12, "vocab_size": len(names), **config}
        (folder / "config.json").write_text(json.dumps(declared))
        return folder

    return make


@pytest.fixture
def tiny_tokenizer() -> Callable[[Path], None]:
    """Writes a tokenizer of 61 words, those of a general text among them, as a transformers directory."""

    def write(folder: Path) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast

        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        found = sorted(
            set(re.findall(r"\w+", (REPOSITORY / "tasks" / "english.txt").read_text(encoding="utf-8")))
        )
        numbers = {name: number for number, name in enumerate([*names, *found][:61])}
        tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        frame = [("[CLS]", 2), ("[SEP]", 3)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=frame
        )
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)

    return write
