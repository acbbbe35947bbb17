"""One frozen body in memory, adapters with heads of their own: each row of a batch names the one it is for.

Peft computes the rows of several adapters in one pass (`adapter_names`), but asks that all heads have one
shape (peft #2136): heads are held here, one a name, with any number of labels. Inside peft an adapter goes by
a slot that is part of no other slot's name, and which rows want which travels with the call, so that threads
that ask at once know nothing of one another.

A row is answered in one of two ways, by the model's class: a head reads it once, and each adapter has one of
its own; or a language model goes on with it, whose head is mostly its word table, which all of them share.
"""

import copy
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from dataclasses import replace as changed
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tasks import architectures, files
from tasks.errors import TrainingError, did_you_mean
from tasks.model import adapters, floors, heads, tail

BASE = "__base__"  # of rows that want no adapter; peft's word for it, too
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
MIXED = ("lora", "rslora")  # kinds of which peft computes several in one pass
_wanted: ContextVar[Sequence[str]] = ContextVar("wanted")


@dataclass(frozen=True)
class About:
    """An adapter that a bank knows. digest: of its folder as it was loaded. size: bytes of its tensors, head
    included."""

    name: str
    folder: Path
    digest: str
    kind: str
    labels: tuple[str, ...]
    size: int
    resident: bool


@dataclass(eq=False)
class _Held:
    """saved: what is known of it, tensors aside. slot, head: where those are, while they are. users: calls
    that need them now. retired: nobody can ask for it any more."""

    folder: Path
    digest: str
    saved: adapters.Saved
    size: int
    slot: str = ""
    head: Any = None
    users: int = 0
    retired: bool = False


class Bank:
    """model: what all adapters were trained in: a classifier, whose own head answers nobody, or a language
    model that goes on with a text. It belongs to the bank from now on. room: bytes for adapters and heads;
    who was asked for least recently makes room, and is read from its folder again when a row wants it. None:
    no limit.

    Raises TrainingError for a model whose head reads each token and that cannot go on.
    """

    def __init__(self, model: PreTrainedModel, *, room: int | None = None) -> None:
        self._read = heads.head_of(model).read
        if self._read not in READ and not model.can_generate():
            raise TrainingError(
                f"{type(model).__name__}: a bank holds heads that read a row once, and language models that "
                "go on with a text; this one tells of each token"
            )
        self.model, self.room = model.eval().requires_grad_(False), room
        self._body, self._parts = adapters.body_digest(model), list(floors.floors(model)[-1].parameters)
        self._tops = heads.head_of(model).paths if self._parts else ()  # its word table is everybody's
        for layer in adapters.ready(model):
            layer.register_forward_pre_hook(_tell, with_kwargs=True)
        self._held = 0  # bytes
        self._known: OrderedDict[str, _Held] = OrderedDict()  # who was asked for last stands last
        self._slots, self._changed = count(1), threading.Condition()

    @property
    def body(self) -> str:
        """Digest of the body that adapters must have been trained on."""
        return self._body

    def load(self, name: str, folder: Path, *, replace: bool = False) -> About:
        """Read the adapter that `adapters.save` wrote to `folder`; rows ask for it by `name`.

        replace: where the name is taken, rows that are asked for from now on get this one.
        Raises TrainingError for a name that is taken or unsafe, for another body, class or kind, for what
        does not fit the model and for more than the room; the bank then is as it was.
        """
        saved = adapters.read(folder)
        self._demand_fit(name, folder, saved)
        new = _Held(folder, _digest(folder), changed(saved, tensors={}), _size(saved))
        with self._changed:
            self._demand_free(name, replace)
            while not self._make_room({name: new}):
                self._changed.wait()
                self._demand_free(name, replace)
            self._place(new, saved)
            if former := self._known.pop(name, None):
                self._retire(former)
            self._known[name] = new
            return _about(name, new)

    def unload(self, name: str) -> None:
        """Forget it, when the calls that use it have ended. Raises TrainingError for an unknown name."""
        with self._changed:
            self._demand([name])
            self._retire(self._known.pop(name))

    def __iter__(self) -> Iterator[About]:
        """All that it knows, by name."""
        with self._changed:
            known = [_about(name, one) for name, one in self._known.items()]
        return iter(sorted(known, key=lambda one: one.name))

    def answer(self, given: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
        """given: what the body is called with, each (batch, tokens). names: of each row its adapter, or BASE.

        Each row's logits (labels of its adapter,); of a BASE row the mean of its last hidden states (width,).
        Raises TrainingError for names that are unknown, or that have no room beside one another, and where
        the model goes on with a text (`generate`).
        """
        if self._read not in READ:
            raise TrainingError(f"a {type(self.model).__name__} goes on with a text: it has no label for it")
        with self._asked(given["input_ids"], names) as held:
            states = self.model.base_model(**given).last_hidden_state
            return self._told(states, given["attention_mask"], names, held)

    def generate(self, names: Sequence[str], **given: Any) -> Tensor:
        """The model's own `generate`, each row by its adapter. names: of each row its adapter, or BASE.

        given: what that takes: input_ids, attention_mask, each (batch, tokens), padded on the left, and how
        to go on, without beams. Returns (batch, tokens): the rows, each with what follows it.
        Raises TrainingError as `answer`, and where the model is a classifier.
        """
        if self._read in READ:
            raise TrainingError(f"a {type(self.model).__name__} says of a text what it is: it cannot go on")
        with self._asked(given["input_ids"], names) as held:
            found: Tensor = self._headed(names, held).generate(**given)
        return found

    @contextmanager
    def _asked(self, rows: Tensor, names: Sequence[str]) -> Iterator[Mapping[str, _Held]]:
        """What the model computes meanwhile in this thread, it computes for these names."""
        if len(names) != len(rows):
            raise TrainingError(f"{len(rows)} rows, and {len(names)} names of adapters")
        with self._using(set(names) - {BASE}) as held, torch.inference_mode():
            token = _wanted.set([held[name].slot if name != BASE else BASE for name in names])
            try:
                yield held
            finally:
                _wanted.reset(token)

    def _headed(self, names: Sequence[str], held: Mapping[str, _Held]) -> Any:
        """The language model with every row's own head; as it is where the head is the word table."""
        result: Any = self.model
        for path in self._tops:
            tops = [self.model if name == BASE else held[name].head for name in names]
            result = tail.replaced(result, path, _Heads([one.get_submodule(path) for one in tops]))
        return result

    def _told(
        self, states: Tensor, mask: Tensor, names: Sequence[str], held: Mapping[str, _Held]
    ) -> list[Tensor]:
        """states: (batch, tokens, width). Rows of one head go through it together."""
        found: list[Tensor] = [torch.empty(0)] * len(names)
        for name in dict.fromkeys(names):
            rows = [place for place, one in enumerate(names) if one == name]
            if name == BASE:
                told = architectures.mean(states[rows], mask[rows])
            else:
                read = READ[self._read](states[rows], mask[rows])
                told = heads.head_of(self.model).logits(held[name].head, read)
            for place, one in zip(rows, told, strict=True):
                found[place] = one
        return found

    @contextmanager
    def _using(self, names: set[str]) -> Iterator[Mapping[str, _Held]]:
        """These stay where they are meanwhile, all of them or none: who waits holds nothing."""
        with self._changed:
            while True:
                held = self._demand(sorted(names))
                if self._make_room(held):
                    break
                self._changed.wait()
            for one in held.values():
                self._place(one)
            for name, one in held.items():
                one.users += 1
                self._known.move_to_end(name)
        try:
            yield held
        finally:
            with self._changed:
                for one in held.values():
                    one.users -= 1
                    if one.retired and not one.users:
                        self._evict(one)
                self._changed.notify_all()

    def _demand(self, names: Sequence[str]) -> dict[str, _Held]:
        for name in names:
            if name not in self._known:
                raise TrainingError(f"no adapter {name!r} is loaded; {did_you_mean(name, self._known)}")
        return {name: self._known[name] for name in names}

    def _demand_free(self, name: str, replace: bool) -> None:
        if name in self._known and not replace:
            taken = self._known[name].folder
            raise TrainingError(f"{name!r} is taken by {taken}: unload it first, or replace it")

    def _demand_fit(self, name: str, folder: Path, saved: adapters.Saved) -> None:
        own = type(self.model).__name__
        if not NAME.fullmatch(name):
            raise TrainingError(
                f"{name!r} names no adapter: it has letters, digits, '.', '_' and '-', 128 at most, and "
                "begins with a letter or digit"
            )
        if saved.architecture != own:
            raise TrainingError(
                f"{folder} was trained in a {saved.architecture}, and the bank's base is a {own}"
            )
        if saved.adapter.kind not in MIXED or saved.whole:
            kept = f", and keeps {', '.join(saved.whole)} whole" if saved.whole else ""
            raise TrainingError(
                f"{folder} is of kind {saved.adapter.kind}{kept}: beside others in a batch stand "
                f"{' and '.join(MIXED)} alone; train such a one, or serve the merged model"
            )
        if saved.body != self._body:
            raise TrainingError(
                f"{folder} was trained on a body {saved.body}, not on {self._body}: put it on its own base"
            )

    def _make_room(self, wanted: Mapping[str, _Held]) -> bool:
        """Whether `wanted` has room beside what others use now; whoever nobody uses makes it.

        Raises TrainingError where it never has.
        """
        if self.room is None:
            return True
        if (size := sum(one.size for one in wanted.values())) > self.room:
            raise TrainingError(
                f"{', '.join(wanted)}: {size:,} bytes together, and the bank has room for {self.room:,}: ask "
                "for fewer at once, or give it more"
            )
        more = sum(one.size for one in wanted.values() if not one.slot)
        idle = [
            one for one in self._known.values() if one.slot and not one.users and one not in wanted.values()
        ]
        for one in idle:
            if self._held + more <= self.room:
                break
            self._evict(one)
        return self._held + more <= self.room

    def _place(self, one: _Held, saved: adapters.Saved | None = None) -> None:
        """Raises TrainingError where its folder is not what was loaded."""
        if one.slot:
            return
        if saved is None:
            if not one.folder.is_dir() or _digest(one.folder) != one.digest:
                raise TrainingError(
                    f"{one.folder} is not what was loaded from it: unload it, and load it again"
                )
            saved = adapters.read(one.folder)
        slot, crown = f"slot{next(self._slots)}_", {adapters.PREFIX + name: name for name in self._parts}
        head = self._crowned({crown[k]: v for k, v in saved.tensors.items() if k in crown}, one)
        body = {name: value for name, value in saved.tensors.items() if name not in crown}
        adapters.add(self.model, changed(saved, tensors=body), slot)
        one.slot, one.head = slot, head
        self._held += one.size

    def _crowned(self, tensors: Mapping[str, Tensor], one: _Held) -> Any:
        """The model with another head: what is below it is shared."""
        result: nn.Module = self.model
        for path in self._tops:
            result = tail.replaced(result, path, copy.deepcopy(self.model.get_submodule(path)))
        faults = sorted(set(self._parts) ^ tensors.keys())
        for name in set(self._parts) & tensors.keys():
            owner, _, leaf = name.rpartition(".")
            value = tensors[name].to(self.model.device)
            faults += [] if self._fits(name, value, one) else [name]
            setattr(result.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
        if faults:
            raise TrainingError(f"{one.folder} does not fit the model: {', '.join(faults)}")
        return result

    def _fits(self, name: str, value: Tensor, one: _Held) -> bool:
        """As the model's own, or with as many outputs as there are labels."""
        own = tuple(self.model.get_parameter(name).shape)
        ours, theirs = self.model.config.num_labels, len(one.saved.labels)
        return tuple(value.shape) in (own, (theirs, *own[1:]) if own[0] == ours else own)

    def _retire(self, one: _Held) -> None:
        one.retired = True
        if not one.users:
            self._evict(one)

    def _evict(self, one: _Held) -> None:
        if one.slot:
            adapters.drop(self.model, one.slot)
            self._held -= one.size
            one.slot, one.head = "", None


class _Heads(nn.Module):
    """In place of a language model's head: every row's own."""

    def __init__(self, of: Sequence[nn.Module]) -> None:
        super().__init__()
        self._of = {one: [row for row, own in enumerate(of) if own is one] for one in of}

    def forward(self, states: Tensor) -> Tensor:
        """(batch, tokens, width) -> (batch, tokens, words)."""
        order = torch.tensor([row for rows in self._of.values() for row in rows], device=states.device)
        return torch.cat([head(states[rows]) for head, rows in self._of.items()])[order.argsort()]


def _tell(module: nn.Module, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before a layer that adapters stand in: which rows want which, as the call that we are in said."""
    return given, {**named, "adapter_names": _wanted.get()}


def _about(name: str, one: _Held) -> About:
    saved = one.saved
    return About(name, one.folder, one.digest, saved.adapter.kind, saved.labels, one.size, bool(one.slot))


def _digest(folder: Path) -> str:
    return files.digest_tree(folder)


def _size(saved: adapters.Saved) -> int:
    return sum(one.nbytes for one in saved.tensors.values())


def _last(states: Tensor, mask: Tensor) -> Tensor:
    """Of the last token that there is, whichever side the padding is on."""
    places = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)
    return states[torch.arange(len(states)), places]


READ = {  # what a head reads of a row's states: (rows, tokens, width), mask (rows, tokens) -> (rows, width)
    "first": lambda states, mask: states[:, 0],
    "last": _last,
    "mean": architectures.mean,
}
