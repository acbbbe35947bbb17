"""Show that a converted checkpoint is what its plan promised, from its bytes up to what it computes.

Each level can fail where the ones below it pass: a square matrix that was transposed has the right shape and
loads without a word, and only `parity` sees it.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers import logging as transformers_logging

from tasks.errors import ProofError
from tasks.weights import place
from tasks.weights.formats import SINGLE, Checkpoint, TensorEntry
from tasks.weights.formats.header import read_header
from tasks.weights.rules import FLOATING, Move, Plan

ROWS, TOKENS = 3, 32  # of the sequences that both models read; the last row is half padding
EXPONENT: Mapping[str, int] = {  # all ones: infinite or not a number
    "BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F80_0000, "F64": 0x7FF0_0000_0000_0000,
}  # fmt: skip


def verify(plan: Plan, source: Checkpoint, directory: Path, *, tolerance: float) -> dict[str, str]:
    """Level -> what it found, for structure, content, load and parity.

    directory: holds the converted config.json and model.safetensors.
    tolerance: largest allowed |difference| of hidden states, source against converted.
    Raises ProofError naming the tensor or the layer.
    """
    found = {
        "structure": structure(plan, directory / SINGLE),
        "content": content(plan, directory / SINGLE),
    }
    with _quiet():
        converted, found["load"] = load(directory)
        found["parity"] = parity(plan, source, converted, tolerance=tolerance)
    return found


def structure(plan: Plan, path: Path) -> str:
    """Every tensor of the plan stands in the file under its name, shape and dtype, and nothing else does."""
    entries = read_header(path)
    promised = {move.target: (move.shape, move.dtype) for move in plan.moves}
    held = {name: (entry.shape, entry.dtype) for name, entry in entries.items()}
    wrong = sorted(name for name in promised.keys() | held.keys() if promised.get(name) != held.get(name))
    if wrong:
        lines = [f"- {name}: planned {promised.get(name)}, written {held.get(name)}" for name in wrong]
        raise ProofError(f"{path.name} is not what was planned:\n" + "\n".join(lines))
    start = min((entry.start for entry in entries.values()), default=0)
    if start % place.ALIGNMENT:
        raise ProofError(
            f"{path.name}: the data starts at byte {start:,}, not at a multiple of {place.ALIGNMENT}"
        )
    total = sum(entry.stop - entry.start for entry in entries.values())
    return f"{len(entries)} of {len(promised)} tensors as planned, {total:,} bytes, no gap and no rest"


def content(plan: Plan, path: Path) -> str:
    """Every kept tensor, read backwards through its rule, is the source's, bit for bit; all are finite."""
    entries = read_header(path)
    kept = [move for move in plan.moves if move.source is not None]
    faults = [fault for move in plan.moves for fault in _content_faults(move, plan, entries[move.target])]
    if faults:
        raise ProofError(f"{path.name} does not hold what the source held:\n" + "\n".join(faults))
    size = sum(math.prod(move.shape) for move in kept)
    drawn = len(plan.moves) - len(kept)
    return (
        f"{len(kept)} tensors ({size:,} parameters) equal the source's by sha256, {drawn} initialised as "
        f"drawn; all values finite"
    )


def load(directory: Path) -> tuple[PreTrainedModel, str]:
    """transformers reads the directory and fills every tensor of its model from it."""
    model, info = AutoModelForSequenceClassification.from_pretrained(
        directory, output_loading_info=True, use_safetensors=True, dtype=torch.float32, local_files_only=True
    )
    faults = _loading_faults(info)
    if faults:
        raise ProofError(f"transformers does not load {directory.name} whole:\n" + "\n".join(faults))
    kind = type(model).__name__
    return model.eval(), f"{kind}: no tensor missing, unexpected or of another shape"


def parity(plan: Plan, source: Checkpoint, converted: PreTrainedModel, *, tolerance: float) -> str:
    """Source and converted model, both read by transformers, compute the same on fixed sequences.

    Compared where the plan keeps what fills them: every hidden state (rows, tokens, width), the pooler
    (rows, width), the logits (rows, labels).
    """
    base = f"{converted.base_model_prefix}."
    pooler = any(move.source and move.target.startswith(f"{base}pooler.") for move in plan.moves)
    head = any(move.source and not move.target.startswith(base) for move in plan.moves)
    original = _original(plan, source, base, head=head)
    inputs = sequences(converted.config)
    theirs = _states(original, inputs, pooler=pooler, head=head)
    ours = _states(converted, inputs, pooler=pooler, head=head)
    if theirs.keys() != ours.keys():
        raise ProofError(
            f"source and converted model differ in depth: {', '.join(theirs.keys() ^ ours.keys())}"
        )
    differences = {name: float((theirs[name] - ours[name]).abs().max()) for name in ours}
    for name, difference in differences.items():
        if not difference <= tolerance:  # so written, NaN fails
            raise ProofError(
                f"source and converted model first differ at {name}: max |difference| {difference:.3g}, "
                f"tolerance {tolerance:g}; look at the rules that fill it"
            )
    rows, tokens = inputs["input_ids"].shape
    return (
        f"max |difference| {max(differences.values()):g} (tolerance {tolerance:g}) on {rows} sequences of "
        f"{tokens} tokens, at {', '.join(ours)}"
    )


def sequences(config: Any) -> dict[str, torch.Tensor]:
    """Token ids, mask and, where the model has them, token types; each (rows, tokens) int64, never random."""
    pad = config.pad_token_id or 0
    tokens = max(1, min(TOKENS, config.max_position_embeddings - pad - 1))  # RoBERTa counts from pad + 1
    ids = (torch.arange(ROWS * tokens) * 7919 + 13).reshape(ROWS, tokens) % config.vocab_size
    mask = torch.ones_like(ids)
    ids[-1, (tokens + 1) // 2 :], mask[-1, (tokens + 1) // 2 :] = pad, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.arange(tokens).expand(ROWS, tokens) % config.type_vocab_size
    return inputs


def _content_faults(move: Move, plan: Plan, entry: TensorEntry) -> Iterator[str]:
    raw = place.array(entry)
    backward = move.rule.op.backward
    if move.source is None:
        expected = place.initial(move, seed=plan.seed, deviation=plan.deviation)
    else:
        expected = place.array(move.source)
        raw = backward(raw) if backward else raw
    if _sha256(raw) != _sha256(expected):
        yield f"- {move.target} is not {move.source.name if move.source else 'what its seed draws'}"
    if entry.dtype in FLOATING and (wild := _not_finite(raw, entry.dtype)):
        yield f"- {move.target}: {wild:,} values are infinite or not a number, in the source too"


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data.cast("B") if array.size else b"").hexdigest()


def _not_finite(raw: NDArray[Any], dtype: str) -> int:
    exponent = raw.dtype.type(EXPONENT[dtype])
    return int(np.count_nonzero((raw & exponent) == exponent))


def _original(plan: Plan, source: Checkpoint, base: str, *, head: bool) -> PreTrainedModel:
    """The source as transformers itself reads it: an opinion on its names that owes nothing to our rules."""
    kind = AutoModelForSequenceClassification if head else AutoModel
    model, info = kind.from_pretrained(
        source.directory,
        output_loading_info=True,
        use_safetensors=True,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
    )
    kept = {move.target.removeprefix(base) for move in plan.moves if move.source}
    lost = sorted(kept & {name.removeprefix(base) for name in info["missing_keys"]})
    if lost:
        raise ProofError(f"transformers does not find these in the source, we do: {', '.join(lost)}")
    return model.eval()  # type: ignore[no-any-return]


def _states(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], *, pooler: bool, head: bool
) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model.base_model(**inputs, output_hidden_states=True)
        states = {_place_name(depth): state for depth, state in enumerate(output.hidden_states)}
        if pooler:
            states["pooler"] = output.pooler_output
        if head:
            states["logits"] = model(**inputs).logits
    return states


def _place_name(depth: int) -> str:
    return f"layer {depth - 1}" if depth else "embeddings"


def _loading_faults(info: Mapping[str, Any]) -> list[str]:
    kinds: Sequence[str] = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return [f"- {kind}: {', '.join(sorted(map(str, info[kind])))}" for kind in kinds if info.get(kind)]


@contextmanager
def _quiet() -> Iterator[None]:
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
