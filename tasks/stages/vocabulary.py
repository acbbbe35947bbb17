"""vocabulary: the tokenizer that text will be encoded with, and where each of its tokens comes from."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as parquet
from transformers import PreTrainedTokenizerBase

from tasks import files, references
from tasks.artifacts import PreparedText, Sources, Vocabulary
from tasks.params import Params, VocabularyParams
from tasks.stages import Track
from tasks.text.tokens import encode, learn, rows, vocabulary


def run(params: Params, root: Path, track: Track) -> Vocabulary:
    source, listing = params.sources.checkpoint, Sources.load(root).path / "checkpoint.json"
    checkpoint = references.locate(source.path, root=root, revision=source.revision)
    references.check(checkpoint, listing)
    theirs = vocabulary.load(checkpoint)
    vocabulary.adopt(theirs, checkpoint / "config.json")
    ours = _choose(params.vocabulary, theirs, checkpoint, root)
    table = vocabulary.alignment(
        ours,
        theirs,
        kept=params.vocabulary.tokenizer == "checkpoint",
        added=params.vocabulary.add_tokens,
    )
    with files.replace_directory(Vocabulary.folder(root)) as draft:
        ours.save_pretrained(draft / "tokenizer")
        parquet.write_table(table, draft / "alignment.parquet")
        Vocabulary.save(
            draft,
            size=vocabulary.size(ours),
            kept=len(table) - table["source_id"].null_count,
            fresh=table["source_id"].null_count,
            special=vocabulary.special(ours),
        )
    record = Vocabulary.load(root)
    track.metrics(record.figures())
    return record


def _choose(
    settings: VocabularyParams, theirs: PreTrainedTokenizerBase, checkpoint: Path, root: Path
) -> PreTrainedTokenizerBase:
    if settings.tokenizer == "checkpoint":
        ours = vocabulary.load(checkpoint)
        vocabulary.adopt(ours, checkpoint / "config.json")
    else:
        prepared = PreparedText.load(root)
        ours = learn.train(
            theirs,
            lambda: _texts(prepared),
            model=settings.tokenizer,
            size=settings.size,
            minimum_frequency=settings.minimum_frequency,
        )
    vocabulary.extend(ours, settings.add_tokens)
    return ours


def _texts(prepared: PreparedText) -> Iterator[list[str]]:
    """Of the train split alone: a test text must not shape what reads it."""
    columns = encode.wanted(prepared.kind)
    for table in rows.batches(prepared.path / "rows.parquet", "train", columns):
        yield vocabulary.texts(table, prepared.kind)
