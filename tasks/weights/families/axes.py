"""What the dimensions of a model's tensors are, and how long its config makes them."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.weights.families.naming import Config
from tasks.weights.ops import Shape
from tasks.weights.rules import matches

JOINED = "+"  # between axes that lie behind one another along one dimension


@dataclass(frozen=True)
class Layout:
    """The axis along each dimension of a tensor.

    contracted: the dimension that the layer sums over; None where it sums over none.
    """

    axes: tuple[str, ...]
    contracted: int | None = None


Layouts = Mapping[str, Layout]  # template of a tensor's name -> its layout


@dataclass(frozen=True)
class Width:
    """The fields of a config that tell how wide the model is.

    keys: counts the heads of keys and values; None where every head has its own.
    head, embedding: the tensors that may be tied; None where the class has no head.
    """

    hidden: str
    heads: str
    inner: str
    keys: str | None = None
    head: str | None = None
    embedding: str | None = None


@dataclass(frozen=True)
class Axes:
    """Of one of transformers' classes.

    fields: axis -> fields of its config whose product is the axis's length.
    full: the config, with what transformers takes for what it leaves out.
    width: None where a width that changes would change more than sums.
    """

    layouts: Layouts
    fields: Mapping[str, tuple[str, ...]]
    full: Callable[[Config], Config]
    width: Width | None = None

    def layout(self, name: str) -> Layout | None:
        """None for a tensor that is no parameter of the class."""
        found = (layout for template, layout in self.layouts.items() if matches(template, name) is not None)
        return next(found, None)

    def sizes(self, config: Config) -> Mapping[str, int]:
        full = self.full(config)
        return {axis: math.prod(full[field] for field in fields) for axis, fields in self.fields.items()}

    def shape(self, name: str, config: Config) -> Shape | None:
        """That of a tensor in a model of this config; None for one that is no parameter of the class."""
        layout = self.layout(name)
        return None if layout is None else self.lengths(layout, config)

    def lengths(self, layout: Layout, config: Config) -> Shape:
        sizes = self.sizes(config)
        return tuple(sum(sizes[part] for part in parts(axis)) for axis in layout.axes)

    def origin(self, layout: Layout | None, config: Config) -> str:
        """The fields that make the shape of a parameter, as a sentence begins: "the config's … make"."""
        full = self.full(config)
        axes = [part for axis in (layout.axes if layout else ()) for part in parts(axis)]
        fields = list(dict.fromkeys(field for axis in axes for field in self.fields[axis]))
        told = [f"{f} {full[f]}{' by default' * (config.get(f) is None)}" for f in fields]
        return f"the config's {' and '.join(told)} {'make' if len(told) > 1 else 'makes'}"


def parts(axis: str) -> list[str]:
    return axis.split(JOINED)


def completed(config: Config, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {**defaults, **{field: value for field, value in config.items() if value is not None}}


def embedding(module: str, rows: str, hidden: str = "hidden") -> Layouts:
    return {f"{module}.weight": Layout((rows, hidden))}


def norm(module: str) -> Layouts:
    return {f"{module}.{{p:weight|bias}}": Layout(("hidden",))}


def linear(module: str, after: str, before: str) -> Layouts:
    """torch.nn.Linear: a weight (after, before), and perhaps a bias."""
    return {f"{module}.weight": Layout((after, before), contracted=1), f"{module}.bias": Layout((after,))}


def conv1d(module: str, before: str, after: str) -> Layouts:
    """GPT-2's Conv1D: a weight (before, after), and a bias."""
    return {f"{module}.weight": Layout((before, after), contracted=0), f"{module}.bias": Layout((after,))}


def together(layouts: Iterable[Layouts]) -> Layouts:
    return {template: layout for several in layouts for template, layout in several.items()}
