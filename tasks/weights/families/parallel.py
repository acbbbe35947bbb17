"""Rules for checkpoints whose tensors are in parts, as model-parallel training leaves them.

Layers divide their rows among the accelerators or their columns (Shoeybi et al., 2019, Megatron-LM), and each
holds a copy of what is not divided. Part 1 of `norm.weight` is called `1:norm.weight`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tasks.errors import CheckpointError
from tasks.weights.ops import Chain, Concatenate
from tasks.weights.rules import KEEP, Rule, Tie

Divided = Mapping[str, tuple[int, int]]  # template -> the axis that is divided, its size in the whole tensor


def joined(rules: Iterable[Rule], divided: Divided, parts: int) -> tuple[Rule, ...]:
    """`rules`, of one source each, for `parts` parts.

    Of a tensor that is not `divided` part 0 is taken, and each copy must be it byte for byte.
    Raises CheckpointError with every axis that the parts do not divide.
    """
    if wrong := [f"{name} ({size})" for name, (_, size) in divided.items() if size % parts]:
        raise CheckpointError(
            f"{parts} files cannot hold equal parts of {', '.join(wrong)}: mend the sizes in params.json, or "
            "fetch the files again"
        )
    return tuple(made for rule in rules for made in _of_parts(rule, divided, parts))


def _of_parts(rule: Rule, divided: Divided, parts: int) -> Iterator[Rule]:
    (source,) = rule.sources
    if source in divided:
        axis, size = divided[source]
        join = Concatenate((size // parts,) * parts, axis)
        op = join if rule.op == KEEP else Chain((join, rule.op))
        yield replace(rule, source=f"{{e*}}:{source}", op=op)
    else:
        copies = "|".join(map(str, range(1, parts)))
        yield replace(rule, source=f"0:{source}")
        yield Rule(f"{{part:{copies}}}:{source}", None, Tie(f"0:{source}"), "every part holds a copy")
