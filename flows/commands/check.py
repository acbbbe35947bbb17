"""What `regraft doctor` says of one thing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    finding: str
    remedy: str = ""
