from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tasks.evaluation.asking import predict
from tasks.evaluation.figures import tagging
from tasks.evaluation.figures.tagging import METRICS, spans
from tasks.evaluation.predictions import ragged
from tasks.model.batches import sorted_batches
from tasks.text.tokens import words


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("", set()),
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),
        ("B-PER B-PER", {(0, 1, "PER"), (1, 2, "PER")}),
        ("I-PER I-PER O I-LOC", {(0, 2, "PER"), (3, 4, "LOC")}),  # IOB1
        ("I-PER B-PER I-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 3, "LOC")}),
        ("S-PER B-LOC I-LOC E-LOC S-LOC", {(0, 1, "PER"), (1, 4, "LOC"), (4, 5, "LOC")}),  # IOBES
        ("U-PER B-LOC L-LOC", {(0, 1, "PER"), (1, 3, "LOC")}),  # BILOU
        ("B-PER E-PER I-PER", {(0, 2, "PER"), (2, 3, "PER")}),
        ("NOUN NOUN O VERB", {(0, 1, "NOUN"), (1, 2, "NOUN"), (3, 4, "VERB")}),  # no spans: words
    ],
)
def test_entities_are_found_as_conlleval_finds_them(tags, expected):
    assert spans(tags.split()) == expected


NAMES = ("B-LOC", "B-PER", "I-PER", "O")
TRUE = ["B-PER I-PER O B-LOC", "O O", "B-LOC"]
SAID = ["B-PER O O B-LOC", "B-LOC O", "B-LOC"]


def _numbers(rows):
    return ragged([NAMES.index(tag) for tag in row.split()] for row in rows)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_accuracy", 5 / 7),
        ("entity_precision", 2 / 4),
        ("entity_recall", 2 / 3),
        ("entity_f1", 4 / 7),
        ("macro_f1", np.mean([2 * 2 / 5, 1, 0, 2 * 2 / 6])),
    ],
)
def test_metrics_by_hand(name, expected):
    given, said = tagging.counted(_numbers(TRUE), _numbers(SAID), NAMES)
    assert METRICS[name](given, said) == pytest.approx(expected)
    assert METRICS[name](*tagging.counted(_numbers(TRUE), _numbers(TRUE), NAMES)) == 1.0


def test_rows_are_compared_by_their_share_of_right_words():
    assert tagging.right(_numbers([*TRUE, ""]), _numbers([*SAID, ""])).tolist() == [0.75, 0.5, 1.0, 1.0]


def test_where_nothing_is_an_entity_and_none_is_said_all_is_right():
    assert METRICS["entity_f1"](*tagging.counted(_numbers(["O O"]), _numbers(["O O"]), NAMES)) == 1.0


def test_words_to_be_tagged_are_cut_into_the_tokens_that_were_encoded(tiny):
    """A byte-level tokenizer takes the space before a word for a part of it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    sentences = ["the quick brown fox", "jumps over the lazy dog", "brown dogs jump"] * 3
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<pad>"], show_progress=False)
    made.train_from_iterator(sentences, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", model_max_length=30)
    model = tiny("RobertaForTokenClassification", vocab_size=len(made.get_vocab()) + 1)
    rows = [["the", "quick", "dog"], ["brown"], ["over", "the", "lazy", "fox"]]
    encoded = words.encode(pa.table({"tokens": rows}), tokenizer, 30)
    batches = partial(sorted_batches, batch_size=2, pad=1)
    ids = ["a", "b", "c"]
    expected = predict.tags(
        model, {name: encoded[name] for name in ("input_ids", "places")}, ids=ids, batches=batches
    )
    found = predict.predict_texts(
        model, tokenizer, words.spaced(rows, tokenizer), kind="tags", batches=batches, max_length=30
    )
    assert encoded["input_ids"][0] == tokenizer("the quick dog")["input_ids"]
    for one, other in zip(found, expected, strict=True):
        assert one.tolist() == other.tolist()
