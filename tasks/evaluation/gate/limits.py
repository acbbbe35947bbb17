"""What the gate asks beside better answers: calibration, speed, size, proofs, test rows that are not worn."""

from collections.abc import Iterator, Sequence

from tasks.evaluation.gate.checks import Check, Evidence, counted, decimal, numbers, unknown
from tasks.params import GateParams

UNPROVEN = "not judged"  # how conversion's record of a proof begins that could not be made


def limits(evidence: Evidence, conditions: GateParams) -> Iterator[Check]:
    """What has a maximum, and is asked for."""
    if conditions.maximum_ece is not None:
        yield _calibrated(evidence, conditions.maximum_ece)
    if conditions.maximum_latency_ratio is not None:
        yield _fast(evidence, conditions.maximum_latency_ratio)
    if conditions.maximum_megabytes is not None:
        yield _small(evidence, conditions.maximum_megabytes)


def proven(evidence: Evidence, proofs: Sequence[str]) -> Iterator[Check]:
    """The conversion has recorded each of these proofs; without any it verified nothing."""
    if evidence.proofs is None:
        yield unknown("proofs", evidence)
        return
    if not evidence.proofs:
        yield Check("proofs", "hold", "the conversion has proven nothing: run `dvc repro -f conversion`")
    for level in proofs:
        told = evidence.proofs.get(level, "")
        if told and not told.startswith(UNPROVEN):
            yield Check(f"proof {level}", "promote", f"conversion proved {level}: {told}")
        else:
            why = told or "it was not made; name it in conversion.verify"
            yield Check(f"proof {level}", "hold", f"the conversion has no proof of {level}: {why}")


def judged(number: int, maximum: int, alpha: float) -> Check:
    """How many candidates these test rows have judged: each is one more chance of a false promotion."""
    chance = 1 - (1 - alpha / 2) ** number
    figures = {"count": float(number), "false_promotion": chance}
    told = (
        f"{counted(number, 'candidate')} judged on these test rows, at most {maximum:,}: "
        f"if none is better, one is promoted all the same with a chance of {100 * chance:.3g} %"
    )
    if number <= maximum:
        return Check("judgements", "promote", told, figures)
    remedy = (
        "take fresh test rows: new ones marked `test` in the column that sources.text.split names, or all "
        "divided anew by another preparation.salt, then `regraft run`"
    )
    return Check("judgements", "hold", f"{told}; {remedy}", figures)


def _calibrated(evidence: Evidence, maximum: float) -> Check:
    if evidence.ece is None:
        return unknown("ece", evidence)
    return _limit("calibration", "expected calibration error", evidence.ece, maximum)


def _fast(evidence: Evidence, maximum: float) -> Check:
    if evidence.champion is None:
        return Check("latency", "promote", "first version: there is no champion to be as fast as")
    if evidence.latency_ratio is None:
        return unknown("latency_ratio", evidence)
    return _limit(
        "latency", "time to answer as a multiple of the champion's", evidence.latency_ratio, maximum
    )


def _small(evidence: Evidence, maximum: float) -> Check:
    if evidence.size is None:
        return unknown("size", evidence)
    return _limit("size", "millions of bytes of the model directory", evidence.size / 1e6, maximum)


def _limit(name: str, what: str, value: float, maximum: float) -> Check:
    kept = value <= maximum  # NaN is not
    told = f"{what} {decimal(value)} {'<=' if kept else '>'} {maximum:g}"
    return Check(name, "promote" if kept else "hold", told, numbers({"value": value, "maximum": maximum}))
