"""Everything that can go wrong for a reason a person can mend.

RegraftError                 exit code 1
├── InputError               exit code 2: something you wrote or brought is not usable
│   ├── ParamsError          params.yaml or an override: unknown key, value out of range
│   ├── SourceError          the table of text: missing file or column, empty, undecodable
│   ├── DataError            the rows cannot be used: a class too small, labels that do not match
│   └── CheckpointError      the weights: a pickle, a git-LFS pointer, a torn file
│       ├── PlanError        a tensor without an explanation
│       └── ProofError       the converted checkpoint is not what the plan promised
├── ArtifactError            exit code 4: a stage's output is missing or is not what its manifest says
├── TrainingError            exit code 4: a loss that is not a number, a schedule the model cannot follow
├── TrackingError            the MLflow server cannot be reached or refuses
│   ├── RefusedError         it answers, and would refuse the same again
│   └── HeldError            exit code 3: and a promotion did not end
└── WorkspaceError           git or DVC cannot give the run a place of its own

What has an exit code of its own fails alike each time; only the others are worth another try.
A message is a sentence that names the file, row or tensor and the remedy. A refusal to promote is a
`Verdict`, not an error.
"""

from collections.abc import Collection
from difflib import get_close_matches

SHOWN = 40  # known names that a sentence lists


class RegraftError(Exception):
    """Base of every error that carries a remedy in its message."""

    exit_code = 1

    @classmethod
    def lasting(cls) -> bool:
        """Whether another try on the same input would fail alike."""
        return cls.exit_code != RegraftError.exit_code


class InputError(RegraftError):
    exit_code = 2


class ParamsError(InputError):
    pass


class SourceError(InputError):
    pass


class DataError(InputError):
    pass


class CheckpointError(InputError):
    pass


class PlanError(CheckpointError):
    pass


class ProofError(CheckpointError):
    pass


class ArtifactError(RegraftError):
    exit_code = 4


class TrainingError(RegraftError):
    exit_code = 4


class TrackingError(RegraftError):
    pass


class RefusedError(TrackingError):
    pass


class HeldError(TrackingError):
    exit_code = 3

    @classmethod
    def lasting(cls) -> bool:
        return False


class WorkspaceError(RegraftError):
    pass


def did_you_mean(name: str, known: Collection[str]) -> str:
    """The end of an error sentence: the nearest known name, else all of them, at most SHOWN."""
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    rest = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return f"known: {', '.join(sorted(known)[:SHOWN])}{rest}"
