from functools import partial

import numpy as np
import pytest
import torch

from tasks.errors import TrainingError
from tasks.evaluation.asking import predict
from tasks.model.batches import sorted_batches

IDS_OF = [[5, 6, 7], [8, 9], [10, 11, 12, 13, 14], [15], [16, 17, 18]]
ROWS = {"input_ids": IDS_OF}
IDS = ["a", "b", "c", "d", "e"]


def _batches(rows):
    """Two rows at a time, the last first, padded with the id 0."""
    numbers = list(reversed(range(len(rows["input_ids"]))))
    for start in range(0, len(numbers), 2):
        some = numbers[start : start + 2]
        lengths = [len(rows["input_ids"][n]) for n in some]
        given = {name: _padded([column[n] for n in some], max(lengths)) for name, column in rows.items()}
        mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
        yield some, {**given, "attention_mask": mask}


def _padded(rows, longest):
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def _alone(model, row):
    tokens = torch.tensor([row])
    with torch.no_grad():
        return model(input_ids=tokens), model.bert(input_ids=tokens).last_hidden_state[0]


def test_logits_come_in_row_order_whatever_the_batches(tiny_bert):
    model = tiny_bert()
    found = predict.logits(model, ROWS, ids=IDS, batches=_batches)
    expected = np.stack([_alone(model, row)[0].logits[0].numpy() for row in IDS_OF])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "pool"), [("mean", lambda hidden: hidden.mean(dim=0)), ("first", lambda hidden: hidden[0])]
)
def test_features_are_pooled_over_real_tokens_only(tiny_bert, pooling, pool):
    model = tiny_bert()
    found = predict.features(model, ROWS, ids=IDS, batches=_batches, pooling=pooling)
    expected = np.stack([pool(_alone(model, row)[1]).numpy() for row in IDS_OF])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_one_pass_gives_what_two_give_and_leaves_no_hook(tiny_bert):
    model = tiny_bert()
    logits, features = predict.logits_and_features(model, ROWS, ids=IDS, batches=_batches)
    assert np.array_equal(logits, predict.logits(model, ROWS, ids=IDS, batches=_batches))
    assert np.array_equal(features, predict.features(model, ROWS, ids=IDS, batches=_batches))
    assert not model.bert._forward_hooks


def test_dropout_is_off_even_for_a_model_left_in_training(tiny_bert):
    model = tiny_bert().train()
    first = predict.logits(model, ROWS, ids=IDS, batches=_batches)
    assert np.array_equal(first, predict.logits(model, ROWS, ids=IDS, batches=_batches))


def test_logits_that_are_not_numbers_name_their_rows(tiny_bert):
    model = tiny_bert()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[15] = torch.nan
    with pytest.raises(TrainingError, match=r"logits are not finite numbers for 1 of 5 rows \(d\)"):
        predict.logits(model, ROWS, ids=IDS, batches=_batches)


def test_a_row_that_no_batch_holds_is_an_error(tiny_bert):
    with pytest.raises(ValueError, match="batches left out 2 of 5 rows"):
        predict.logits(tiny_bert(), ROWS, ids=IDS, batches=lambda rows: _batches({"input_ids": IDS_OF[:3]}))


def test_softmax_survives_large_logits():
    found = predict.softmax(np.array([[1000.0, 1000.0], [-1000.0, 0.0]], dtype=np.float32))
    assert found.tolist() == [[0.5, 0.5], [0.0, 1.0]]
    assert found.dtype == np.float32


def test_texts_are_cut_as_in_training(tiny_bert):
    asked = {}

    def tokenizer(texts, **options):
        asked.update(options)
        return {"input_ids": [[5] * min(len(text), options["max_length"]) for text in texts]}

    model = tiny_bert()
    found = predict.predict_texts(
        model, tokenizer, ["abc", "abcdefgh"], kind="label", batches=_batches, max_length=4
    )
    expected = predict.logits(model, {"input_ids": [[5] * 3, [5] * 4]}, ids=["1", "2"], batches=_batches)
    assert asked == {"truncation": True, "max_length": 4}
    assert np.array_equal(found, predict.softmax(expected))


def test_both_texts_of_a_pair_are_read_and_told_apart(tiny_bert, tiny_classifier, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_classifier(tmp_path / "model"))
    model, told = tiny_bert(), []

    def batches(rows):
        told.append(rows)
        return _batches(rows)

    pairs = [("good film", "bad"), ("bad", "good film")]
    one, other = predict.predict_texts(model, tokenizer, pairs, kind="pair", batches=batches, max_length=9)
    assert told[0]["input_ids"] == tokenizer(["good film", "bad"], ["bad", "good film"])["input_ids"]
    assert not np.allclose(one, other)


def test_where_the_second_text_begins_reaches_the_model(tiny_bert):
    model = tiny_bert()
    types = [[0] * len(row) for row in IDS_OF]
    same = predict.logits(model, {**ROWS, "token_type_ids": types}, ids=IDS, batches=_batches)
    types[2] = [0, 0, 1, 1, 1]
    found = predict.logits(model, {**ROWS, "token_type_ids": types}, ids=IDS, batches=_batches)
    assert [bool(np.allclose(a, b)) for a, b in zip(same, found, strict=True)] == [
        True,
        True,
        False,
        True,
        True,
    ]


FRAME = (-1, -1)  # of a token outside of the text


def _flat(pairs):
    return [number for pair in pairs for number in pair]


@pytest.mark.parametrize(("token", "said"), [(14, "fgh"), (11, "b"), (9, ""), (20, "")])
def test_an_answer_is_found_in_whichever_window_holds_it(tiny, token, said):
    """The model is made sure of one token; 9 is a word of the question, 20 is nowhere."""
    model, text = tiny("BertForQuestionAnswering").eval(), "abcdefgh"
    rows = {
        "input_ids": [[2, 9, 3, 10, 11, 12, 3], [2, 9, 3, 13, 14, 3], [2, 8, 3, 10, 3]],
        "offsets": [
            _flat([FRAME, FRAME, FRAME, (0, 1), (1, 2), (2, 3), FRAME]),
            _flat([FRAME, FRAME, FRAME, (3, 5), (5, 8), FRAME]),
            _flat([FRAME, FRAME, FRAME, (0, 8), FRAME]),
        ],
        "owners": [[0], [0], [1]],
    }

    def be_sure(module, args, given, output):
        output.start_logits = output.end_logits = (given["input_ids"] == token).float()

    model.register_forward_hook(be_sure, with_kwargs=True)
    cut = partial(sorted_batches, batch_size=2, pad=0)
    found = predict.spans(model, rows, [text, text], ids=["a", "b"], batches=cut)
    assert found.tolist() == [said, ""]
