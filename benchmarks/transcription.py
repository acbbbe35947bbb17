"""One conversion: python -m benchmarks.transcription convert|durable|verify|digest|peer FROM TO [FAMILY]."""

import sys
from pathlib import Path


def main() -> None:
    what, source, target, *family = sys.argv[1:]
    if what == "peer":
        _peer(source, target)
    else:
        _ours(what, Path(source), Path(target), family[0])


def _ours(what: str, source: Path, target: Path, family: str) -> None:
    from tasks.weights import content, place, roundtrip, transcribe
    from tasks.weights.families import find_naming
    from tasks.weights.formats import SINGLE, open_checkpoint

    made = transcribe.planned(open_checkpoint(source), find_naming(family))
    if what == "digest":
        roundtrip.digests(made.plan, open_checkpoint(target).entries)
    elif what == "verify":
        content.content(made.plan, target / SINGLE, finite=False)
    else:
        place.write(made.plan, target, made.config, metadata={}, durable=what == "durable")


def _peer(source: str, target: str) -> None:
    """What is usual: the model into memory, and out again."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(source).save_pretrained(target)


if __name__ == "__main__":
    main()
