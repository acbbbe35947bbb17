"""A whole checkpoint from another project's names to transformers', or back: planned, placed, proven.

Nothing here imports torch; `proof.loads` does, where it is asked.
"""

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks import files
from tasks.errors import CheckpointError, InputError, PlanError
from tasks.weights import content, mixture, partial, place, roundtrip, width
from tasks.weights.families import AXES, find_blocks, find_sparse
from tasks.weights.families.axes import Axes, Layout
from tasks.weights.families.naming import WRAPPERS, Naming
from tasks.weights.formats import Checkpoint, TensorEntry, together
from tasks.weights.inert import inert
from tasks.weights.mixture import Mixture
from tasks.weights.plan import Plan, Target, plan
from tasks.weights.rules import Rule

Config = Mapping[str, Any]
FLOATS = Target(dtype="F32")  # floating-point numbers, in whatever shape the table makes
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration)
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}  # in transformers' words


@dataclass(frozen=True)
class Transcription:
    """What will be written: the plan and the model's description on the other side.

    theirs: the model as transformers' config, architecture: its class.
    whole: the same with every layer, of the source's width and without experts, where this one is otherwise.
    experts: the models that it merges.
    """

    plan: Plan
    config: Config
    theirs: Config
    architecture: str
    naming: str
    reverse: bool
    whole: "Transcription | None" = None
    experts: "tuple[Transcription, ...]" = ()


def planned(
    source: Checkpoint,
    naming: Naming,
    *,
    reverse: bool = False,
    layers: Sequence[int] | None = None,
    wanted: width.Wanted | None = None,
    experts: Mixture | None = None,
    merged: Sequence[Checkpoint] = (),
) -> Transcription:
    """The plan from `source` to transformers, or from transformers' names to the other project's.

    layers: those to take, in this order; one that stands again right after itself is an inserted block that
    adds nothing. None: all.
    wanted: the width, "double" or a smaller one; None: the source's.
    experts: those that take the place of each feed-forward network; None: as the source.
    merged: fine-tunes of the source, each the expert of its number; none: all are made of the source.
    Raises PlanError with every tensor that has no explanation or not the shape that the config makes,
    CheckpointError where the source does not say what model it is, InputError for layers that it has not or
    that cannot be inserted, for a width that it cannot have, and for experts that it cannot be given.
    """
    if reverse and wanted is not None:
        raise InputError("a width is changed on the way to transformers: convert so first, then --reverse")
    if experts:
        mixture.demand(experts, reverse=reverse, otherwise=layers is not None or wanted is not None)
    try:
        made = _planned(source, naming, reverse=reverse, layers=layers)
        if experts:
            return _mixed(source, naming, made, experts, merged)
        return made if wanted is None else _resized(source, naming, made, wanted)
    except UNREADABLE as error:
        missing = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else ""
        told = missing or str(error) or "a field is missing"
        raise CheckpointError(
            f"{source.directory}: its config does not describe a model of the family {naming.name} ({told}): "
            "mend it, or name the family that it belongs to"
        ) from None


def _planned(
    source: Checkpoint, naming: Naming, *, reverse: bool, layers: Sequence[int] | None
) -> Transcription:
    given = {**source.config, "tensors": frozenset(source.entries)}
    theirs = naming.theirs.checked(source.config) if reverse else naming.config(given)
    _demand_tensors(source, naming.numbers(theirs))
    expected, held = naming.expected(theirs, reverse=reverse), {}
    if reverse:
        held = _shaped({name: _own(name, naming) for name in source.entries}, naming, theirs)
    names = {name: name for name in expected}
    targets = dict.fromkeys(expected, FLOATS) if reverse else _shaped(names, naming, theirs)
    made = plan(source.entries, _table(source, naming, theirs, reverse=reverse), targets, given=held)
    whole = _told(made, naming, theirs, reverse=reverse)
    return whole if layers is None else _part(source, naming, theirs, whole, layers)


def _table(source: Checkpoint, naming: Naming, theirs: Config, *, reverse: bool) -> tuple[Rule, ...]:
    if source.parts == 1 or reverse:
        return naming.table(theirs, reverse=reverse)
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    return naming.joining(theirs, shapes, source.parts)


def _shaped(names: Mapping[str, str], naming: Naming, theirs: Config) -> dict[str, Target]:
    """Each key of `names` with the shape that its value has in transformers' model of this config."""
    axes = AXES[naming.architecture]
    layouts = {name: axes.layout(own) for name, own in names.items()}
    targets = {layout: _laid(axes, layout, theirs) for layout in {*layouts.values()}}
    return {name: targets[layout] for name, layout in layouts.items()}


def _laid(axes: Axes, layout: Layout | None, theirs: Config) -> Target:
    shape = None if layout is None else axes.lengths(layout, theirs)
    return replace(FLOATS, shape=shape, origin=axes.origin(layout, theirs))


def _own(name: str, naming: Naming) -> str:
    """transformers' name of what may have a wrapper's prefix, or lack the base's."""
    bare = name.removeprefix(max((one for one in WRAPPERS if name.startswith(one)), key=len))
    known = AXES[naming.architecture].layout(bare) or bare.startswith(naming.base)
    return bare if known else f"{naming.base}{bare}"


def _demand_tensors(source: Checkpoint, numbers: Mapping[str, Iterable[int]]) -> None:
    """Raises CheckpointError before names are made of a depth that the checkpoint cannot have."""
    for count in (len(range_) for range_ in numbers.values() if isinstance(range_, range)):
        if count > len(source.entries):
            raise CheckpointError(
                f"{source.directory}: its config tells of {count:,} layers, and it holds "
                f"{len(source.entries):,} tensors in all"
            )


def _part(
    source: Checkpoint, naming: Naming, theirs: Config, whole: Transcription, layers: Sequence[int]
) -> Transcription:
    """`whole` with `layers` alone."""
    blocks = find_blocks(naming.architecture)
    partial.demand(layers, theirs, blocks)
    depth, fewer = theirs[blocks.depth], {**theirs, blocks.depth: len(layers)}
    rules = partial.table(whole.plan, blocks, layers, depth, reverse=whole.reverse)
    expected = naming.expected(fewer, reverse=whole.reverse)
    made = plan(source.entries, rules, partial.targets(whole.plan, expected, layers))
    return replace(_told(made, naming, fewer, reverse=whole.reverse), whole=whole)


def _resized(source: Checkpoint, naming: Naming, made: Transcription, wanted: width.Wanted) -> Transcription:
    """`made` of the width `wanted`."""
    axes = AXES[naming.architecture]
    change = width.change(made.theirs, naming.architecture, axes, wanted)
    rules = width.table(made.plan, axes, change)
    wider = plan(source.entries, rules, width.targets(made.plan, axes, change))
    return replace(_told(wider, naming, change.config, reverse=False), whole=made.whole or made)


def _mixed(
    source: Checkpoint, naming: Naming, dense: Transcription, wanted: Mixture, models: Sequence[Checkpoint]
) -> Transcription:
    """`dense` with experts in the place of its feed-forward networks: its own, or those of `models`."""
    sparse, axes = find_sparse(naming.architecture), AXES[naming.architecture]
    config = sparse.config(dense.theirs, wanted.experts, wanted.chosen)
    tuned = tuple(_tuned(model, naming) for model in models)
    for model, one in zip(models, tuned, strict=True):
        own = sparse.config(one.theirs, wanted.experts, wanted.chosen)
        mixture.demand_alike(own, config, sparse.computing, model.directory)
    if tuned:
        sources = {mixture.BASE: source, **{str(number): model for number, model in enumerate(models)}}
        entries: Mapping[str, TensorEntry] = together(sources)
        rules = mixture.merged(dense.plan, [one.plan for one in tuned], sparse)
    else:
        entries = source.entries
        rules = mixture.table(dense.plan, sparse, axes, wanted, config["num_hidden_layers"])
    deviation = config.get("initializer_range") or mixture.DEVIATION
    aims = mixture.targets(dense.plan, sparse, config)
    made = plan(entries, rules, aims, seed=wanted.seed, deviation=deviation)
    named = replace(naming, architecture=sparse.architecture)
    whole = None if tuned else dense
    return replace(_told(made, named, config, reverse=False), whole=whole, experts=tuned)


def _tuned(model: Checkpoint, naming: Naming) -> Transcription:
    try:
        return planned(model, naming)
    except PlanError as error:
        raise PlanError(f"{model.directory}: {error}") from None


def _told(made: Plan, naming: Naming, theirs: Config, *, reverse: bool) -> Transcription:
    about = {"architectures": [naming.architecture], "dtype": DTYPES.get(made.dtype)}
    described = naming.back(theirs) if reverse else {**inert(theirs), **about}
    return Transcription(made, described, inert(theirs), naming.architecture, naming.name, reverse)


def transcribe(
    transcription: Transcription,
    target: Path,
    *,
    prove: Callable[[Path], Mapping[str, str]] | None = None,
    shard_size: int | None = None,
    levels: Collection[str] = (),
) -> dict[str, str]:
    """Write config.json, model.safetensors and plan.json into the new directory `target`.

    shard_size: bytes of a file; where one does not suffice there are several, and their index. None: one.
    levels: what else is proven of the bytes: inverse, digests. The latter also tells in the result's metadata
    what the source was, which means reading all of it.
    Returns level -> what the proofs of structure, content and `levels` found, and those of `prove`, which
    gets the directory before it takes its place. Raises InputError where `target` exists; a failed proof
    leaves nothing behind.
    """
    if os.path.lexists(target):
        raise InputError(f"{target} exists: name a directory that does not, nothing is overwritten")
    made, name = transcription.plan, f"{transcription.naming}{' reversed' * transcription.reverse}"
    with files.replace_directory(target) as draft:
        metadata = {"family": name, "plan": made.digest()}
        metadata |= {"source": _digest(made)} if "digests" in levels else {}
        path = place.write(
            made, draft, transcription.config, metadata=metadata, durable=False, shard_size=shard_size
        )
        with files.synced(sorted(draft.iterdir())):
            found = {"structure": content.structure(made, path), "content": content.content(made, path)}
            more, digests = roundtrip.prove(made, draft, levels)
            found |= more | dict(prove(draft) if prove else {})
        described: dict[str, Any] = {"family": name, "preserves": made.preserves, "proofs": found}
        described |= {"parameters": made.parameters()} | ({"digests": digests} if digests else {})
        files.write_text(draft / "plan.json", files.canonical_json({**described, "rows": made.rows()}))
    return found


def _digest(made: Plan) -> str:
    """Of the source's files, whatever they are called."""
    taken = [entry for move in made.moves for entry in move.step.sources]
    sources = {entry.file for entry in [*taken, *(unused.source for unused in made.unused)]}
    return files.digest_json(sorted(map(files.digest_file, sources)))
