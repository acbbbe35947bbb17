"""The state of torch's random generators: dropout goes on, or is drawn again, from where it stood."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def state() -> dict[str, Tensor]:
    """Device -> its generator's state, uint8 on the CPU."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def begin(seed: Sequence[int]) -> None:
    """Draw from `seed` on, on all devices."""
    torch.manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1, np.uint64)[0]))


def restore(found: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(found["cpu"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
