"""The names that torch's pickles need, and the descriptions of tensors that they stand for.

Sources: `torch.serialization._save`, `torch._utils._rebuild_tensor_v2` and its neighbours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Storage:
    """A record of the zip. dtype: of its items; None of one that counts bytes."""

    dtype: str | None
    key: str
    items: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count items of `dtype`."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Name:
    """A global name that stands in NAMES, STORAGES or DTYPES; module and name, with a space between."""

    text: str


class Table(dict[Any, Any]):
    """What an OrderedDict becomes; the attributes that torch gives to one are dropped."""


def meaning(text: str) -> str:
    """What a name that is not known stands for, as the end of a sentence."""
    module, _, name = text.partition(" ")
    for part, kind in KINDS.items():
        if part in name.lower() or module.startswith(part):
            return kind
    return "which is not a tensor"


def _table(*arguments: Any) -> Table:
    if arguments:
        raise ValueError("an OrderedDict has arguments, as only Python 2 wrote them")
    return Table()


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any = None,
    _hooks: Any = None,
    marks: Any = None,
) -> Tensor:
    if type(storage) is not Storage or storage.dtype is None:
        raise ValueError("a tensor has no storage of numbers")
    return _view(storage, storage.dtype, offset, shape, strides, marks)


def _tensor_of_dtype(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    _grad: Any,
    _hooks: Any,
    dtype: Any,
    marks: Any = None,
) -> Tensor:
    if type(storage) is not Storage or type(dtype) is not Name or dtype.text not in DTYPES:
        raise ValueError("a tensor has no storage or no dtype")
    return _view(storage, DTYPES[dtype.text], offset, shape, strides, marks)


def _view(storage: Storage, dtype: str, offset: Any, shape: Any, strides: Any, marks: Any) -> Tensor:
    if marks:
        raise ValueError("a tensor is conjugated or negated only when it is read")
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError("a tensor has no shape with a stride for each dimension")
    if any(type(number) is not int for number in (offset, *shape, *strides)):
        raise ValueError("a tensor's offset, shape and strides must be whole numbers")
    return Tensor(storage, dtype, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if type(tensor) is not Tensor:
        raise ValueError("a parameter holds no tensor")
    return tensor


def _size(shape: Any) -> tuple[Any, ...]:
    if type(shape) is not tuple:
        raise ValueError("a torch.Size holds no tuple")
    return shape


STORAGES: Mapping[str, str | None] = {
    "torch DoubleStorage": "F64", "torch FloatStorage": "F32", "torch HalfStorage": "F16",
    "torch BFloat16Storage": "BF16", "torch LongStorage": "I64", "torch IntStorage": "I32",
    "torch ShortStorage": "I16", "torch CharStorage": "I8", "torch ByteStorage": "U8",
    "torch BoolStorage": "BOOL", "torch.storage UntypedStorage": None,
}  # fmt: skip

DTYPES: Mapping[str, str] = {
    "torch float64": "F64", "torch float32": "F32", "torch float16": "F16", "torch bfloat16": "BF16",
    "torch float8_e4m3fn": "F8_E4M3", "torch float8_e5m2": "F8_E5M2", "torch float8_e8m0fnu": "F8_E8M0",
    "torch int64": "I64", "torch int32": "I32", "torch int16": "I16", "torch int8": "I8",
    "torch uint64": "U64", "torch uint32": "U32", "torch uint16": "U16", "torch uint8": "U8",
    "torch bool": "BOOL",
}  # fmt: skip

NAMES: Mapping[str, Callable[..., Any]] = {
    "collections OrderedDict": _table,
    "torch Size": _size,
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils _rebuild_parameter": _parameter,
}

KINDS: Mapping[str, str] = {  # part of a name in small letters, or a module's beginning -> what it is
    "qtensor": "a quantised tensor, which safetensors cannot hold",
    "qint": "a quantised tensor, which safetensors cannot hold",
    "quint": "a quantised tensor, which safetensors cannot hold",
    "sparse": "a sparse tensor, which safetensors cannot hold: save it with to_dense()",
    "complex": "a tensor of complex numbers, which no layer here takes",
    "_meta_": "a tensor without values",
    "__torch__": "a TorchScript program",
    "torch.nn.modules": "a whole module, not its weights",
    "__main__": "an object of a script, not its weights",
}
