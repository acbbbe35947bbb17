"""Zips as an attacker would write them: any members, any pickle, any header."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.weights.formats import TensorEntry


def raw_bytes(entry: TensorEntry) -> bytes:
    """The bytes of a tensor, however the entry says they are had."""
    if entry.decoded is not None:
        assert entry.decoded().shape == entry.shape
        return entry.decoded().tobytes()
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        return stream.read(entry.stop - entry.start)


@pytest.fixture
def bytes_of() -> Callable[[TensorEntry], bytes]:
    return raw_bytes


@pytest.fixture
def zipped(tmp_path: Path) -> Callable[..., Path]:
    """Writes members (name -> bytes) as archive/<name> of a zip."""

    def write(members: Mapping[str, bytes], *, root: str = "archive/", **options: Any) -> Path:
        path = tmp_path / "model.pt"
        with zipfile.ZipFile(path, "w", **options) as archive:
            for name, data in members.items():
                archive.writestr(root + name, data)
        return path

    return write


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes `value` with torch.save."""

    def write(value: Any, name: str = "model.pt", **options: Any) -> Path:
        torch.save(value, tmp_path / name, **options)
        return tmp_path / name

    return write
