"""A directory as transformers reads it: nothing is fetched, unpickled or run, nothing left unfilled."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from tasks import architectures
from tasks.errors import ProofError
from tasks.weights.inert import inert

REFUSING = (KeyError, TypeError, ValueError, AttributeError, ImportError, IndexError, RuntimeError, OSError)


def described(fields: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' description of the model, without what would reach beyond this machine."""
    return architectures.configured(**inert(fields))


def read(directory: Path, kind: Any, **more: Any) -> Any:
    """The model in float32 and what transformers tells of loading it."""
    return kind.from_pretrained(
        directory,
        output_loading_info=True,
        use_safetensors=True,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        experts_implementation="eager",  # the only one that computes in float64
        **more,
    )


def load(directory: Path, kind: Any = None) -> tuple[PreTrainedModel, str]:
    """transformers reads the directory and fills every tensor of its model from it.

    kind: transformers' class; None: the one that config.json names.
    """
    kind = kind or named(directory)
    model, info = read(directory, kind, ignore_mismatched_sizes=True)  # faults below, each with both shapes
    faults = _faults(info)
    if faults:
        raise ProofError(f"transformers does not load {directory.name} whole:\n" + "\n".join(faults))
    return model.eval(), f"{type(model).__name__}: no tensor missing, unexpected or of another shape"


def named(directory: Path) -> Any:
    """The class that config.json names, transformers' or ours."""
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    name = (fields.get("architectures") or [""])[0]
    return architectures.CLASSES.get(name) or getattr(transformers, name)


def whole(directory: Path) -> tuple[PreTrainedModel, str]:
    """The model that config.json names, and how it loads.

    Raises ProofError where transformers does not take it, or would make up a tensor.
    """
    try:
        with quiet():
            return load(directory)
    except REFUSING as error:
        raise refused(error) from None


def refused(error: Exception) -> ProofError:
    return ProofError(f"transformers does not take the model: {shorten(str(error), 300)}")


def places(config: Any, most: int) -> int:
    """How many tokens a sequence may have, at most `most`."""
    pad = config.pad_token_id or 0
    known = getattr(config, "max_position_embeddings", None) or 2 * most  # T5 has no table of positions
    behind = known - pad - 1 if pad < known - 1 else known  # RoBERTa's begin behind pad
    return max(1, min(most, behind))


@contextmanager
def quiet() -> Iterator[None]:
    """transformers warns of a source's unused heads and draws bars; our plan has said it already."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _faults(info: Mapping[str, Any]) -> list[str]:
    kinds: Sequence[str] = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return [f"- {kind}: {', '.join(sorted(map(str, info[kind])))}" for kind in kinds if info.get(kind)]
