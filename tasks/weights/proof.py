"""Show that a converted checkpoint is what its plan promised, from its bytes up to what it computes.

Each level can fail where the ones below it pass: a square matrix that was transposed has the right shape and
loads without a word, and only `parity` sees it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers import logging as transformers_logging

from tasks.errors import ProofError
from tasks.weights import content, place
from tasks.weights.formats import SINGLE, Checkpoint
from tasks.weights.inert import inert
from tasks.weights.plan import Plan, Target
from tasks.weights.plan import plan as make_plan
from tasks.weights.rules import Rule

Words = Sequence[tuple[int, int]]  # tokens of two vocabularies: (id in the source, id in the converted model)
ROWS, TOKENS = 3, 32  # of the sequences that both models read; the last row is half padding
REFUSING = (KeyError, TypeError, ValueError, AttributeError, ImportError, IndexError, RuntimeError, OSError)
ROUNDING = 1e-6  # of the largest value: equal sums may be taken in another order where memory lies otherwise


def verify(
    plan: Plan, source: Checkpoint, directory: Path, *, tolerance: float, words: Words | None = None
) -> dict[str, str]:
    """Level -> what it found, for structure, content, load and parity.

    directory: holds the converted config.json and model.safetensors.
    tolerance: largest allowed |difference| of hidden states, source against converted.
    words: of the tokens that both vocabularies have, where they are not the same.
    Raises ProofError naming the tensor or the layer.
    """
    found = {
        "structure": content.structure(plan, directory / SINGLE),
        "content": content.content(plan, directory / SINGLE),
    }
    with _quiet():
        converted, found["load"] = load(directory)
        found["parity"] = parity(plan, source, converted, tolerance=tolerance, words=words)
    return found


def loads(directory: Path) -> str:
    """transformers fills every tensor of the model that config.json names, and its outputs are numbers.

    Raises ProofError naming what it misses.
    """
    output, found = _computed(directory)
    if not bool(output.isfinite().all()):
        raise ProofError(f"{found.split(':')[0]} computes values that are infinite or not numbers")
    return found


def preserved(whole: Plan, config: Mapping[str, Any], directory: Path) -> str:
    """The model in `directory` computes what the one with all layers does, which `whole` and `config` make.

    Raises ProofError with the largest difference of their logits.
    """
    with TemporaryDirectory(dir=directory.parent) as folder:
        place.write(whole, Path(folder), config, metadata={}, durable=False)
        return logits_agree(Path(folder), directory)


def logits_agree(one: Path, other: Path) -> str:
    """Two models that transformers reads compute the same logits on fixed sequences.

    Raises ProofError with the largest difference.
    """
    theirs, ours = (_computed(directory)[0] for directory in (one, other))
    difference, allowed = float((theirs - ours).abs().max()), ROUNDING * float(theirs.abs().max())
    if not difference <= allowed:  # so written, NaN fails
        raise ProofError(
            f"the plan says that the model computes exactly what its source does, but logits differ by up to "
            f"{difference:.3g}, more than {allowed:.3g}: a projection that closes a block is not in the table"
        )
    rows, tokens = theirs.shape[:2]
    return f"max |difference| {difference:g} of logits on {rows} sequences of {tokens} tokens"


def _computed(directory: Path) -> tuple[torch.Tensor, str]:
    """First output (rows, tokens, width) of the model that config.json names, and how it loads."""
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with _quiet(), torch.no_grad():
            model, found = load(directory, getattr(transformers, config.architectures[0]))
            return model(**sequences(config))[0], found
    except REFUSING as error:
        raise ProofError(f"transformers does not take the model: {shorten(str(error), 300)}") from None


def fits(plan: Plan, config: Mapping[str, Any], architecture: str) -> str:
    """The tensors of the source have the shapes that transformers gives a model of this config.

    Raises ProofError with every one that has not; no weight is made.
    """
    try:
        with torch.device("meta"):
            model = getattr(transformers, architecture)(_config(config))
    except REFUSING as error:
        raise ProofError(f"transformers does not take the model: {shorten(str(error), 300)}") from None
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sources = [entry for move in plan.moves for entry in move.step.sources if entry.name in shapes]
    if wrong := {
        f"- {e.name} is {e.shape}, not {shapes[e.name]}" for e in sources if e.shape != shapes[e.name]
    }:
        raise ProofError(f"the source is not the {architecture} of its config:\n" + "\n".join(sorted(wrong)))
    return f"{architecture} of this config has tensors of these shapes"


def _config(fields: Mapping[str, Any]) -> PretrainedConfig:
    """transformers' description of the model, without what would reach beyond this machine."""
    return AutoConfig.for_model(**inert(fields))


def _read(directory: Path, kind: Any, **more: Any) -> Any:
    """The model and what transformers tells of loading it; nothing is fetched, unpickled or run."""
    return kind.from_pretrained(
        directory,
        output_loading_info=True,
        use_safetensors=True,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        **more,
    )


def load(directory: Path, kind: Any = AutoModelForSequenceClassification) -> tuple[PreTrainedModel, str]:
    """transformers reads the directory and fills every tensor of its model from it."""
    model, info = _read(directory, kind, ignore_mismatched_sizes=True)  # faults below, each with both shapes
    faults = _loading_faults(info)
    if faults:
        raise ProofError(f"transformers does not load {directory.name} whole:\n" + "\n".join(faults))
    return model.eval(), f"{type(model).__name__}: no tensor missing, unexpected or of another shape"


def parity(
    plan: Plan,
    source: Checkpoint,
    converted: PreTrainedModel,
    *,
    tolerance: float,
    words: Words | None = None,
) -> str:
    """Source and converted model, both read by transformers, compute the same on fixed sequences.

    Compared where the plan keeps what fills them: every hidden state (rows, tokens, width), the pooler
    (rows, width), the logits (rows, labels). With `words` the sequences are of these tokens alone, and each
    model reads its own ids.
    """
    base = f"{converted.base_model_prefix}."
    pooler = any(move.source and move.target.startswith(f"{base}pooler.") for move in plan.moves)
    head = any(move.source and not move.target.startswith(base) for move in plan.moves)
    original = _original(plan, source, base, head=head)
    inputs = sequences(converted.config, [ours for _, ours in words] if words else None)
    theirs = _states(original, _translated(inputs, words), pooler=pooler, head=head)
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
    kept = (
        f" that both vocabularies have ({len(words):,} of {converted.config.vocab_size:,})" if words else ""
    )
    return (
        f"max |difference| {max(differences.values()):g} (tolerance {tolerance:g}) on {rows} sequences of "
        f"{tokens} tokens{kept}, at {', '.join(ours)}"
    )


def sequences(config: Any, words: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    """Token ids, mask and, where the model has them, token types; each (rows, tokens) int64, never random.

    words: the ids to choose from, padding included; None: all.
    """
    pad = config.pad_token_id or 0
    places = getattr(config, "max_position_embeddings", 2 * TOKENS)  # T5 has no table of positions
    tokens = max(
        1, min(TOKENS, places - pad - 1 if pad < places - 1 else places)
    )  # RoBERTa's begin behind pad
    known = torch.arange(config.vocab_size) if words is None else torch.tensor(words)
    ids = known[(torch.arange(ROWS * tokens) * 7919 + 13).reshape(ROWS, tokens) % len(known)]
    pad = pad if words is None or pad in words else words[0]  # behind the mask any id would do
    mask = torch.ones_like(ids)
    ids[-1, (tokens + 1) // 2 :], mask[-1, (tokens + 1) // 2 :] = pad, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    if getattr(config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.arange(tokens).expand(ROWS, tokens) % config.type_vocab_size
    return inputs


def _translated(inputs: Mapping[str, torch.Tensor], words: Words | None) -> Mapping[str, torch.Tensor]:
    """The same tokens as the source numbers them."""
    if words is None:
        return inputs
    theirs = {ours: source for source, ours in words}
    ids = [[theirs[id] for id in row] for row in inputs["input_ids"].tolist()]
    return {**inputs, "input_ids": torch.tensor(ids)}


def _original(plan: Plan, source: Checkpoint, base: str, *, head: bool) -> PreTrainedModel:
    """The source as transformers itself reads it: an opinion on its names that owes nothing to our rules."""
    kind = AutoModelForSequenceClassification if head else AutoModel
    with _as_safetensors(source) as directory:
        model, info = _read(directory, kind, config=_config(source.config))
    kept = {move.target.removeprefix(base) for move in plan.moves if move.source}
    lost = sorted(kept & {name.removeprefix(base) for name in info["missing_keys"]})
    if lost:
        raise ProofError(f"transformers does not find these in the source, we do: {', '.join(lost)}")
    return model.eval()  # type: ignore[no-any-return]


@contextmanager
def _as_safetensors(source: Checkpoint) -> Iterator[Path]:
    """The source's directory, or one with its tensors as they are: transformers shall unpickle nothing."""
    if source.format == "safetensors":
        yield source.directory
        return
    rules = [Rule(name, name) for name in source.entries]
    same = make_plan(source.entries, rules, {name: Target() for name in source.entries})
    with TemporaryDirectory() as folder:
        place.write(same, Path(folder), source.config, metadata={})
        yield Path(folder)


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
