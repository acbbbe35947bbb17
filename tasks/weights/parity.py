"""Source and converted model compute the same: compared layer by layer, on fixed sequences of token ids."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from tasks import architectures
from tasks.errors import ProofError
from tasks.weights import loading, place
from tasks.weights.formats import Checkpoint
from tasks.weights.loading import places
from tasks.weights.plan import Plan, Target
from tasks.weights.plan import plan as make_plan
from tasks.weights.rules import Rule

Words = Sequence[tuple[int, int]]  # tokens of two vocabularies: (id in the source, id in the converted model)
ROWS, TOKENS = 3, 32  # of the sequences that both models read; the last row is half padding
ROUNDING = 1e-6  # of the largest value: equal sums may be taken in another order where memory lies otherwise


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
    (rows, width), the logits (rows, labels) or (rows, tokens, scores). With `words` the sequences are of
    these tokens alone, each model reads its own ids, and logits of other tokens are left out.
    """
    base = f"{converted.base_model_prefix}."
    pooler = any(move.source and move.target.startswith(f"{base}pooler.") for move in plan.moves)
    head = all(move.source or move.target.startswith(base) for move in plan.moves)
    reference = original(plan, source, base, type(converted) if head else AutoModel)
    inputs = sequences(converted.config, [ours for _, ours in words] if words else None)
    if head and reference.config.pad_token_id is None:  # a classifier that reads the last token needs one
        pad = converted.config.pad_token_id
        reference.config.pad_token_id = {ours: source for source, ours in words or ()}.get(pad, pad)
    theirs = _states(reference, _translated(inputs, words), pooler=pooler, head=head)
    ours = _states(converted, inputs, pooler=pooler, head=head)
    if words and head and converted.get_output_embeddings() is not None:
        theirs["logits"] = theirs["logits"][..., [source for source, _ in words]]
        ours["logits"] = ours["logits"][..., [ours for _, ours in words]]
    largest = _largest(
        theirs, ours, tolerance, "source and converted model", "look at the rules that fill it"
    )
    rows, tokens = inputs["input_ids"].shape
    kept = (
        f" that both vocabularies have ({len(words):,} of {converted.config.vocab_size:,})" if words else ""
    )
    return (
        f"max |difference| {largest:g} (tolerance {tolerance:g}) on {rows} sequences of "
        f"{tokens} tokens{kept}, at {', '.join(ours)}"
    )


def agree(reference: PreTrainedModel, converted: PreTrainedModel) -> str:
    """Two models compute the same hidden states and, where both have a head, logits on fixed sequences.

    Raises ProofError naming the first layer where they do not.
    """
    inputs = sequences(converted.config)
    head = all(hasattr(model, "lm_head") for model in (reference, converted))
    theirs, ours = (_states(model, inputs, pooler=False, head=head) for model in (reference, converted))
    allowed = ROUNDING * max(float(state.abs().max()) for state in theirs.values())
    largest = _largest(theirs, ours, allowed, "reference and converted model", "they are not the same model")
    rows, tokens = inputs["input_ids"].shape
    where = f"{rows} sequences of {tokens} tokens, at {', '.join(ours)}"
    return f"max |difference| {largest:g} from the reference on {where}"


def _largest(
    theirs: Mapping[str, torch.Tensor],
    ours: Mapping[str, torch.Tensor],
    tolerance: float,
    both: str,
    remedy: str,
) -> float:
    """Largest |difference| of any place. Raises ProofError naming the first with more than `tolerance`."""
    shapes = [{name: state.shape for name, state in states.items()} for states in (theirs, ours)]
    if shapes[0] != shapes[1]:
        raise ProofError(
            f"{both} differ in depth, width or vocabulary: {', '.join(theirs.keys() ^ ours.keys())}"
        )
    differences = {name: float((theirs[name] - ours[name]).abs().max()) for name in ours}
    for name, difference in differences.items():
        if not difference <= tolerance:  # so written, NaN fails
            raise ProofError(
                f"{both} first differ at {name}: max |difference| {difference:.3g}, "
                f"tolerance {tolerance:g}; {remedy}"
            )
    return max(differences.values())


def sequences(config: Any, words: Sequence[int] | None = None) -> dict[str, torch.Tensor]:
    """Token ids, mask and, where the model has them, token types; each (rows, tokens) int64, never random.

    words: the ids to choose from, padding included; None: all.
    """
    pad, tokens = config.pad_token_id or 0, places(config, TOKENS)
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
    ids = torch.tensor([[theirs[id] for id in row] for row in inputs["input_ids"].tolist()])
    return {name: ids if name.endswith("input_ids") else value for name, value in inputs.items()}


def original(plan: Plan, source: Checkpoint, base: str, kind: Any = AutoModel) -> PreTrainedModel:
    """The source as transformers itself reads it: an opinion on its names that owes nothing to our rules."""
    own = architectures.CLASSES.get((source.config.get("architectures") or [""])[0], kind)
    with _as_safetensors(source) as directory:
        model, info = loading.read(directory, own, config=loading.described(source.config))
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
        states = {
            f"{side}{_place_name(depth)}": state
            for side, stack in _stacks(output)
            for depth, state in enumerate(stack)
        }
        if pooler:
            states["pooler"] = output.pooler_output
        if head:
            states["logits"] = _logits(model(**inputs))
    return states


def _logits(output: Any) -> torch.Tensor:
    """Of starts and ends one beside the other, (rows, tokens, 2), where the head has two kinds."""
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    return output.logits  # type: ignore[no-any-return]


def _stacks(output: Any) -> Iterator[tuple[str, Sequence[torch.Tensor]]]:
    """Hidden states of the only stack of layers, or of encoder and decoder."""
    if "hidden_states" in output:
        yield "", output.hidden_states
    else:
        yield "encoder ", output.encoder_hidden_states
        yield "decoder ", output.decoder_hidden_states


def _place_name(depth: int) -> str:
    return f"layer {depth - 1}" if depth else "embeddings"
