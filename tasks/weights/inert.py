"""What a checkpoint's config may not bring along: fields that fetch code or choose it."""

from collections.abc import Mapping
from typing import Any

FETCHING = ("auto_map", "custom_pipelines", "quantization_config")
CHOOSING = "_implementation"  # ends the names of fields that choose kernels, from the Hub too


def inert(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` without those fields."""
    return {
        name: value for name, value in config.items() if name not in FETCHING and not name.endswith(CHOOSING)
    }
