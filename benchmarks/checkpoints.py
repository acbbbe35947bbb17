"""A checkpoint of GPT-2's sizes with random values, in each of the forms that the contestants read."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.conversion import RENAMED, TURNED
from tasks.weights import place, transcribe
from tasks.weights.families import find_naming
from tasks.weights.formats import CONFIG, SINGLE, open_checkpoint


def make(folder: Path, layers: int) -> dict[str, Path]:
    """Form -> path: transformers' directory, the same in other names, transposed, and as a .pt file."""
    torch.manual_seed(0)
    made = {"transformers": folder / "transformers"}
    GPT2LMHeadModel(GPT2Config(n_layer=layers)).save_pretrained(made["transformers"])
    source = open_checkpoint(made["transformers"])
    for name in (RENAMED, TURNED):
        there = transcribe.planned(source, find_naming(name), reverse=True)
        place.write(there.plan, folder / name, there.config, metadata={})
        state = load_file(folder / name / SINGLE)
        del state["lm_head.weight"]  # the embedding again: all contestants shall copy the same bytes
        save_file(state, folder / name / SINGLE)
        made[name] = folder / name
    made["pt"] = folder / "pt" / "model.pt"
    made["pt"].parent.mkdir()
    torch.save(load_file(made[RENAMED] / SINGLE), made["pt"])
    (made["pt"].parent / CONFIG).write_bytes((made[RENAMED] / CONFIG).read_bytes())
    return made
