"""Frozen work done once: what the lower part of a model makes of rows, and the upper part on that."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from tasks import architectures, files
from tasks.model import boundary, floors, heads, packed, tail
from tasks.model.batches import Rows, picked, picked_flat
from tasks.model.boundary import Boundary, Cache, Wanted
from tasks.model.masked import Masked
from tasks.model.packed import Spans
from tasks.progress import track

Forward = Callable[[Sequence[int]], Tensor]  # places of rows -> logits (read, outputs)
READ, MEAN = "read", "mean"  # of the last hidden states: what the head reads, and their mean; else `border`'s
NAMES = (
    "_name_or_path",
    "name_or_path",
    "id2label",
    "label2id",
    "transformers_version",
)  # fields of no weight
BATCH = 64  # rows per forward pass where nothing is learned


@dataclass(frozen=True)
class Frozen:
    """A model whose lower floors stand still, and where their states are kept; `adapter` describes what was
    put into its layers, if anything."""

    model: PreTrainedModel
    cache: Cache
    adapter: Mapping[str, Any] = field(default_factory=dict)

    def gather(
        self,
        rows: Rows,
        digest: str,
        names: Sequence[str],
        *,
        about: str,
        weights: Sequence[str] | None = None,
    ) -> dict[str, Boundary]:
        """The states of `names` for all `rows`, which `digest` tells from others; computed in one pass where
        they are not kept yet. Dropout must be off.

        weights: what `digests` said since something last learned below; None: asked now.
        """
        weights = self.digests() if weights is None else weights
        wanted = {name: self._wanted(rows, name, self._depends(digest, name, weights)) for name in names}
        return boundary.gather(
            self.cache.home,
            wanted,
            lambda absent: _states(self.model, rows, absent, description=about),
            maximum=self.cache.maximum,
        )

    def _wanted(self, rows: Rows, name: str, depends: Mapping[str, Any]) -> Wanted:
        """Where a row has one state these are small and always float32, and so is what is kept although
        nothing else shall be: what the head reads."""
        counts = {READ: rows.counts, MEAN: [1] * len(rows)}.get(name)
        small = counts is not None and sum(counts) == len(rows)
        dtype = "float32" if small or self.cache.dtype == "none" else self.cache.dtype
        width = self.model.config.hidden_size
        return Wanted(rows.lengths if counts is None else counts, width, dtype, depends)

    def _below(self, name: str) -> int:
        """How many floors the states of `name` depend on."""
        stack = [floor.name for floor in floors.floors(self.model)[:-1]]
        return stack.index(name) if name in stack else len(stack)

    def digests(self) -> list[str]:
        """Of the weights of every floor below the head."""
        return [boundary.weights_digest(floor.parameters) for floor in floors.floors(self.model)[:-1]]

    def _depends(self, digest: str, name: str, weights: Sequence[str]) -> dict[str, Any]:
        below = floors.floors(self.model)[: self._below(name)]
        config = {key: v for key, v in self.model.config.to_dict().items() if key not in NAMES}
        code = [files.digest_file(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
        return {
            "states": name,
            "rows": digest,
            "weights": files.digest_json(weights[: self._below(name)]),
            "config": files.digest_json(config),
            "adapter": dict(self.adapter) if any(floor.adapter for floor in below) else {},
            "attention": str(self.model.config._attn_implementation),
            "device": self.model.device.type,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "code": files.digest_json(code),
        }

    def name(self, start: int) -> str:
        """Of the states that enter layer `start`; behind the last layer those that the head reads."""
        read = MEAN if heads.head_of(self.model).read == "mean" else READ
        return border(start) if start < len(floors.layers_of(self.model)) else read

    def size(self, rows: Rows, start: int) -> int:
        """Bytes that these states of `rows` take on disk."""
        return self._wanted(rows, self.name(start), {}).nbytes

    def above(self, kept: Boundary, start: int, rows: Rows) -> Forward:
        """The model's logits, computed from the states of `rows` that enter layer `start` on."""
        if self.name(start) in (READ, MEAN):
            return lambda places: floors.head_logits(self.model, self._placed(kept.tokens(places)[0]))
        if packed.known(self.model):
            return lambda places: self._said(*_ends(kept, places), rows, places, start=start)
        body = tail.tail(self.model, start, first_token=rows.first)

        def forward(places: Sequence[int]) -> Tensor:
            hidden, mask = map(self._placed, kept.batch(places))
            last = body(inputs_embeds=hidden, attention_mask=mask).last_hidden_state
            return floors.head_logits(self.model, _read(last, mask, rows, places))

        return forward

    def whole(self, rows: Rows | Masked) -> Forward:
        """The model's logits, everything computed."""
        if packed.known(self.model):
            return lambda places: self._said(
                *packed.embedded(self.model, rows.batch(places, self.model.device)), rows, places, start=0
            )
        body = tail.tail(self.model, 0, first_token=rows.first)

        def forward(places: Sequence[int]) -> Tensor:
            given = rows.batch(places, self.model.device)
            last = body(**given).last_hidden_state
            return floors.head_logits(self.model, _read(last, given["attention_mask"], rows, places))

        return forward

    def _said(
        self, hidden: Tensor, spans: Spans, rows: Rows | Masked, places: Sequence[int], *, start: int
    ) -> Tensor:
        """Logits of `rows` end to end, whose states enter layer `start`."""
        last = packed.states(self.model, hidden, spans, start=start, first_token=rows.first)
        if rows.mean:
            last = architectures.mean(spans.padded(last), spans.mask)
        elif not rows.first:
            last = picked_flat(last, spans.firsts, rows.positions(places))
        return floors.head_logits(self.model, last)

    def _placed(self, value: Tensor) -> Tensor:
        return value.to(self.model.device)


def border(layer: int) -> str:
    """The name of the states that enter layer `layer`: its floor's own."""
    return f"layer {layer}"


def _read(states: Tensor, mask: Tensor, rows: Rows | Masked, places: Sequence[int]) -> Tensor:
    """What the head reads of padded `states` (batch, tokens, width): (read, width)."""
    return architectures.mean(states, mask) if rows.mean else picked(states, rows.positions(places))


def _ends(kept: Boundary, places: Sequence[int]) -> tuple[Tensor, Spans]:
    hidden, lengths = kept.tokens(places)
    return hidden, Spans(lengths)


def pooled(kept: Boundary) -> NDArray[np.float32]:
    """(rows, width)."""
    return np.asarray(kept.states, dtype=np.float32)


def answers(
    forward: Forward,
    rows: Rows | Masked,
    *,
    description: str,
    size: int = BATCH,
    every: slice = slice(None),
) -> Iterator[tuple[list[int], Tensor]]:
    """Places of `size` rows at a time, longest rows first, and their logits (read, outputs), without
    gradient. every: of these batches, those that are computed here."""
    batches = rows.longest_first(size)[every]
    with torch.no_grad():
        for places in track(batches, total=len(batches), description=description):
            yield places, forward(places)


def _states(
    model: PreTrainedModel, rows: Rows, names: Sequence[str], *, description: str
) -> Iterator[tuple[list[int], Mapping[str, Tensor]]]:
    """Batches of places in `rows`, longest rows first, each with the states (batch, tokens, width) of
    `names`; of pooled ones tokens is 1. Nothing gets a gradient, and no layer above the last state that is
    wanted is computed."""
    starts = [layer for layer in range(len(floors.layers_of(model))) if border(layer) in names]
    stop = None if READ in names or MEAN in names else starts.pop()
    compute = _packed_states if packed.known(model) else _padded_states
    first = rows.first and MEAN not in names
    batches = rows.longest_first(BATCH)
    with torch.no_grad():
        for places in track(batches, total=len(batches), description=description):
            given = rows.batch(places, model.device)
            seen, hidden = compute(model, given, starts, stop, first)
            found = {border(start): states for start, states in seen.items()}
            if stop is not None:
                found[border(stop)] = hidden
            if READ in names:
                found[READ] = _by_row(picked(hidden, rows.positions(places)), rows.positions(places))
            if MEAN in names:
                found[MEAN] = architectures.mean(hidden, given["attention_mask"])[:, None]
            yield places, found


Seen = tuple[
    Mapping[int, Tensor], Tensor
]  # layer -> what enters it; what leaves the last: (batch, tokens, width)


def _padded_states(
    model: PreTrainedModel, given: Mapping[str, Tensor], starts: Sequence[int], stop: int | None, first: bool
) -> Seen:
    body = tail.tail(model, 0, first_token=first and stop is None, stop=stop)
    with tail.watched(model, starts, body=body) as seen:
        return seen, body(**given).last_hidden_state


def _packed_states(
    model: PreTrainedModel, given: Mapping[str, Tensor], starts: Sequence[int], stop: int | None, first: bool
) -> Seen:
    hidden, spans = packed.embedded(model, given)
    seen, first = dict.fromkeys(starts, hidden), first and stop is None
    last = packed.states(model, hidden, spans, start=0, stop=stop, first_token=first, seen=seen)
    padded = {start: spans.padded(states) for start, states in seen.items()}
    return padded, last[:, None] if first else spans.padded(last)


def _by_row(states: Tensor, positions: Sequence[NDArray[np.int64]]) -> Tensor:
    """`states` (read, width), a row's own beside one another: (batch, longest, width)."""
    return pad_sequence(states.split([len(row) for row in positions]), batch_first=True)
