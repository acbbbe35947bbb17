"""The energy that a machine has taken, from counters that it shows without asking for more rights.

Linux shows Intel's and AMD's processor packages under /sys (powercap, RAPL), where an administrator lets
people read them; NVIDIA's library counts a device's millijoules since its driver was loaded, from Volta on.
"""

import ctypes
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")
LIBRARY = "libnvidia-ml.so.1"
WORKED = 0  # what a function of NVIDIA's library returns


@dataclass(frozen=True)
class Counter:
    """joules: since some beginning. capacity: where it begins anew, None: nowhere."""

    joules: float
    capacity: float | None = None


def counters(powercap: Path = POWERCAP) -> dict[str, Counter]:
    """Name -> what it shows now; nothing where nothing can be read."""
    return _packages(powercap) | _devices()


def spent(before: Mapping[str, Counter], after: Mapping[str, Counter]) -> float:
    """Joules between two looks, of what both saw; a counter must not begin anew twice in between."""
    return sum(_difference(before[name], now) for name, now in after.items() if name in before)


def _difference(before: Counter, after: Counter) -> float:
    moved = after.joules - before.joules
    return moved if moved >= 0 else moved + (after.capacity or -moved)


def _packages(powercap: Path) -> dict[str, Counter]:
    """Of each package, not of the parts within."""
    found = {}
    for folder in sorted(powercap.glob("intel-rapl:?")):
        with suppress(OSError, ValueError):  # shown to administrators alone
            held, capacity = (
                int((folder / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")
            )
            found[folder.name] = Counter(held / 1e6, capacity / 1e6)
    return found


def _devices() -> dict[str, Counter]:
    """Of the device that torch computes on."""
    if not torch.cuda.is_available():
        return {}
    with suppress(OSError, AttributeError):  # no library, or one from before there was a counter
        name = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        library, handle, held = ctypes.CDLL(LIBRARY), ctypes.c_void_p(), ctypes.c_ulonglong()
        results = (
            library.nvmlInit_v2(),
            library.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle)),
            library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(held)),
        )
        if all(result == WORKED for result in results):
            return {name: Counter(held.value / 1e3)}
    return {}
