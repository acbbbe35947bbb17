"""Many trials, and the undisturbed run that each is compared with."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from benchmarks import project, record
from benchmarks.chaos import attempts, report
from benchmarks.chaos.stands import NEEDS, STANDS, Stand
from benchmarks.chaos.strikes import Strike
from benchmarks.chaos.trials import Trial, trial

TRIALS, QUICK = 50, 2


def skipped() -> dict[str, str]:
    """Victims that cannot be had on this machine, each with the reason."""
    return {victim: reason for victim, missing in NEEDS.items() if (reason := missing())}


def soak(folder: Path, strikes: Sequence[Strike]) -> list[Trial]:
    """What the strikes came to; those on one stand share its servers, all the undisturbed run."""
    found, template = [], folder / "undisturbed"
    for stand, victims in STANDS.items():
        if wanted := [strike for strike in strikes if strike.victim in victims]:
            with stand(folder / stand.__name__) as servers:
                _make(template, servers)
                found += [_tried(template, folder / "trial", strike, servers) for strike in wanted]
    return found


def _make(template: Path, stand: Stand) -> None:
    if template.exists():
        return
    record.say("the undisturbed run")
    project.make(template)
    if (code := attempts.attempt(template, stand.variables)) not in attempts.ENDS:
        said = attempts.log(template).read_text()[-2000:]
        raise RuntimeError(f"the undisturbed run ended with {code}: {said}")


def _tried(template: Path, root: Path, strike: Strike, stand: Stand) -> Trial:
    found = trial(template, root, strike, stand)
    record.say(report.told(found))
    shutil.rmtree(root)
    for service in stand.services.values():
        service.demand()
    return found
