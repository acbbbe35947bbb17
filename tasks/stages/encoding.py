"""encoding: prepared text as token ids, one file a split."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow.compute as compute
import pyarrow.parquet as parquet
from transformers import PreTrainedTokenizerBase

from tasks import files
from tasks.artifacts import SPLITS, EncodedDataset, PreparedText, Vocabulary
from tasks.params import Params
from tasks.stages import Track
from tasks.text import encode, vocabulary
from tasks.text.encode import Encoded


def run(params: Params, root: Path, track: Track) -> EncodedDataset:
    prepared, max_length = PreparedText.load(root), params.encoding.max_length
    tokenizer = vocabulary.load(Vocabulary.load(root).path / "tokenizer")
    encode.check_length(tokenizer, max_length)
    encoded = {split: _encode(prepared, split, tokenizer, max_length) for split in SPLITS}
    with files.replace_directory(EncodedDataset.folder(root)) as draft:
        for split, part in encoded.items():
            part.dataset.to_parquet(draft / f"{split}.parquet")
        EncodedDataset.save(
            draft,
            labels=prepared.labels,
            max_length=max_length,
            rows={split: len(part.dataset) for split, part in encoded.items()},
            tokens={split: part.tokens for split, part in encoded.items()},
            truncated={split: part.truncated for split, part in encoded.items()},
        )
    record = EncodedDataset.load(root)
    track.metrics({**record.figures(), **_losses(encoded)})
    return record


def _encode(
    prepared: PreparedText, split: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoded:
    table = parquet.read_table(prepared.path / "rows.parquet", columns=["id", "text", "label", "split"])
    rows = table.filter(compute.field("split") == split).to_pydict()
    return encode.encode(
        rows["id"],
        rows["text"],
        rows["label"],
        tokenizer=tokenizer,
        max_length=max_length,
        names=prepared.labels,
    )


def _losses(encoded: Mapping[str, Encoded]) -> dict[str, float]:
    lost = {f"tokens_lost.{split}": float(part.lost) for split, part in encoded.items()}
    unknown = {f"unknown_share.{split}": part.unknown / part.tokens for split, part in encoded.items()}
    return lost | unknown
