"""Whom it hits, and when: drawn by a seed, so that a trial can be repeated."""

import itertools
import random
from collections.abc import Collection
from typing import NamedTuple

from tasks.stages import STAGES

FLOW, STAGE, MLFLOW, PREFECT = "flow", "stage", "MLflow", "Prefect"
WORKER, POSTGRESQL, DISK, NETWORK = "worker", "PostgreSQL", "disk", "network"
VICTIMS = (FLOW, STAGE, MLFLOW, PREFECT, WORKER, POSTGRESQL, DISK, NETWORK)
DUE = tuple(stage for stage in STAGES if stage != "sources")  # which always runs
COMMIT = "commit"  # behind the last stage, where everything is pushed: only the network is cut there
LASTING = 6.0  # seconds from a stage's turn to the strike, at most: about what a stage takes
AWAY = 40.0  # seconds for which a network is cut, at most: longer than a request to MLflow is waited for


class Strike(NamedTuple):
    """What happens `after` seconds from when `stage` is at work; the stages from `due` on are due."""

    seed: int
    victim: str
    due: str
    stage: str
    after: float
    lasting: float = 0.0


def draw(seed: int) -> Strike:
    """Victims take turns; what else there is to choose is drawn."""
    chance, victim = random.Random(seed), VICTIMS[seed % len(VICTIMS)]
    place = chance.randrange(len(DUE))
    due, after = chance.choice(DUE[: place + 1]), chance.uniform(0, LASTING)
    lasting = chance.uniform(0, AWAY) if victim == NETWORK else 0.0
    stage = COMMIT if victim == NETWORK and chance.random() < 0.5 else DUE[place]
    return Strike(seed, victim, due, stage, after, lasting)


def several(trials: int, seed: int, victims: Collection[str]) -> list[Strike]:
    """Those of the seeds from `seed` on that hit one of `victims`."""
    drawn = (draw(number) for number in itertools.count(seed))
    return list(itertools.islice((one for one in drawn if one.victim in victims), trials if victims else 0))
