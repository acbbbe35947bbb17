"""`regraft export`: a model as ONNX, with what it takes to ask it."""

from collections.abc import Iterator
from pathlib import Path

from flows.commands import figures
from tasks.stages import export as exported


def export(source: str | None, target: Path, root: Path) -> Iterator[str]:
    """Raises RegraftError for what cannot be exported, or says something else as a graph; then there is no
    `target`."""
    made = exported.export(source, target, root=root)
    found, (shortest, longest) = made.agreement, made.tokens
    yield (
        f"onnxruntime agrees on {made.rows:,} rows of {shortest} to {longest} tokens: "
        f"logits differ by at most {found.difference:.1e} of the largest, allowed are {found.tolerance:g}"
    )
    if found.close:
        yield f"{found.close:,} answers have another label, by two best logits that are as close as that"
    taken = sum(path.stat().st_size for path in target.iterdir())
    yield f"{target}: {made.source}, {made.architecture}, {figures.size(taken)}"
