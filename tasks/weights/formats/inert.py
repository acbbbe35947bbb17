"""Read a pickle's plain values and its descriptions of tensors, without an unpickler.

An unpickler imports what the file names and calls it; a list of what is forbidden always has gaps. Here the
instructions are listed by `pickletools` and followed by a machine that knows only those below, and to which a
name is a text: the few that mean something stand for functions of `torch_names`.
"""

import pickletools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import CheckpointError
from tasks.weights.formats.entries import refuse
from tasks.weights.formats.torch_names import DTYPES, NAMES, STORAGES, Name, Storage, Table, meaning

LONGEST = 64 * 2**20  # bytes
MOST_INSTRUCTIONS = 5_000_000  # each makes at most one object; a tensor takes about 35
REMEDY = "where you trust it, load it yourself and save state_dict() alone: torch.save(model.state_dict(), …)"


class Foreign:
    """Stands for whatever an unknown name would have made."""


FOREIGN = Foreign()


def load(path: Path, data: bytes) -> Any:
    """What the pickle `data` of the file `path` holds: plain values, dicts and Tensors.

    Raises CheckpointError listing every name in it that no tensor needs. Nothing is imported or called.
    """
    if len(data) > LONGEST:
        raise CheckpointError(f"{path} has a pickle of {len(data):,} bytes; {LONGEST:,} are allowed")
    machine = Machine()
    try:
        value = machine.run(data)
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError, AssertionError) as error:
        refuse(path, [*machine.faults], REMEDY)
        fault = f"its pickle cannot be read: {error or type(error).__name__}; nothing was executed"
        raise CheckpointError(f"{path}: {fault}") from None
    refuse(path, [*machine.faults], REMEDY)
    return value


class Machine:
    """The stack machine of a pickle, less all that could reach beyond it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.faults: dict[str, None] = {}

    def run(self, data: bytes) -> Any:
        end = 0
        for count, (instruction, argument, position) in enumerate(pickletools.genops(data)):
            if instruction.name not in STEPS:
                raise ValueError(f"instruction {instruction.name} has no place in a checkpoint")
            if count >= MOST_INSTRUCTIONS:
                raise ValueError(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
            STEPS[instruction.name](self, argument)
            end = (position or 0) + 1  # right of the last instruction, which has no argument
        if end != len(data) or len(self.stack) != 1 or self.below:
            raise ValueError("it does not end where its value does")
        return self.stack[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def join(self, count: int) -> None:
        """The topmost `count` values as one tuple."""
        items = [self.stack.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif target is not FOREIGN:
            raise ValueError(f"it appends to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        """Keys whose hash takes long (a tuple of tuples of tuples …) are refused before they are hashed."""
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int, float, bool, type(None), Foreign):
                raise ValueError(f"it has a dict key of type {type(key).__name__}")
            if isinstance(target, dict):
                target[key] = value
            elif target is not FOREIGN:
                raise ValueError(f"it sets an item of a {type(target).__name__}")

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        self.push(self.memo[place])

    def name(self, text: str) -> None:
        """`text`: module and name, with a space between."""
        if text in NAMES or text in STORAGES or text in DTYPES:
            return self.push(Name(text))
        printable = text.replace(" ", ".")[:200].encode("unicode_escape").decode()
        self.faults[f"refers to {printable}, {meaning(text)}: nothing was executed"] = None
        return self.push(FOREIGN)

    def name_from_stack(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("it names something by values that are no text")
        self.name(f"{module} {name}")

    def reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise ValueError("it calls something without a tuple of arguments")
        if function is FOREIGN or any(argument is FOREIGN for argument in arguments):
            return self.push(FOREIGN)
        if type(function) is not Name or function.text not in NAMES:
            raise ValueError(f"it calls a {type(function).__name__}")
        return self.push(NAMES[function.text](*arguments))

    def make(self, parts: list[Any]) -> None:
        """An object of the class parts[0]: none of the known names is a class."""
        if parts[0] is not FOREIGN:
            raise ValueError(f"it makes an object of a {type(parts[0]).__name__}")
        self.push(FOREIGN)

    def inst(self, text: str) -> None:
        self.since_mark()
        self.name(text)
        self.make([self.stack.pop()])

    def build(self, _: None) -> None:
        self.stack.pop()
        if not isinstance(self.stack[-1], Table | Foreign):
            raise ValueError(f"it sets attributes of a {type(self.stack[-1]).__name__}")

    def storage(self, _: None) -> None:
        match self.stack.pop():
            case ("storage", Name(text), str(key), str(), int(items)) if text in STORAGES and items >= 0:
                self.push(Storage(STORAGES[text], key, items))
            case tuple(parts) if any(part is FOREIGN for part in parts):
                self.push(FOREIGN)
            case other:
                raise ValueError(f"a {type(other).__name__} stands where a storage should be described")


STEPS: Mapping[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), Machine.push),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), Machine.push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES"), Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.join(1),
    "TUPLE2": lambda machine, _: machine.join(2),
    "TUPLE3": lambda machine, _: machine.join(3),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(), machine.stack.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Machine.recall),
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.name_from_stack,
    "INST": Machine.inst,
    "OBJ": lambda machine, _: machine.make(machine.since_mark()),
    "NEWOBJ": lambda machine, _: machine.make([machine.stack.pop(), machine.stack.pop()][::-1]),
    "NEWOBJ_EX": lambda machine, _: machine.make([machine.stack.pop() for _ in range(3)][::-1]),
    "REDUCE": Machine.reduce,
    "BUILD": Machine.build,
    "BINPERSID": Machine.storage,
}
