"""vocabulary: the tokenizer that text will be encoded with, and where each of its tokens comes from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

from tasks import files, references
from tasks.artifacts import Sources, Vocabulary
from tasks.params import Params
from tasks.stages import Track
from tasks.text import vocabulary

ALIGNMENT = pa.schema(
    {"id": pa.int32(), "token": pa.string(), "origin": pa.string(), "source_id": pa.int32()}
)


def run(params: Params, root: Path, track: Track) -> Vocabulary:
    source, listing = params.sources.checkpoint, Sources.load(root).path / "checkpoint.json"
    checkpoint = references.locate(source.path, root=root, revision=source.revision)
    references.check(checkpoint, listing)
    tokenizer = vocabulary.load(checkpoint)
    vocabulary.adopt(tokenizer, checkpoint / "config.json")
    columns = vocabulary.alignment(tokenizer)
    with files.replace_directory(Vocabulary.folder(root)) as draft:
        tokenizer.save_pretrained(draft / "tokenizer")
        parquet.write_table(pa.table(dict(columns), schema=ALIGNMENT), draft / "alignment.parquet")
        Vocabulary.save(
            draft,
            size=vocabulary.size(tokenizer),
            kept=len(columns["id"]),
            fresh=0,
            special=vocabulary.special(tokenizer),
        )
    record = Vocabulary.load(root)
    track.metrics(record.figures())
    return record
