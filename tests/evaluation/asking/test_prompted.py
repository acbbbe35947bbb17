"""lm-eval on tiny models, against likelihoods by hand."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tasks.errors import CheckpointError
from tasks.evaluation.asking import prompted
from tasks.evaluation.asking.prompted import Prompt

WORDS = ("<pad>", "<unk>", "<s>", "</s>", "Text", ":", "Label", "bad", "quite", "good", *"abcdefgh")
PROMPT = Prompt("Text: {text}\nLabel: {label}", ("bad", "quite_good"), [("a b", 1), ("c", 0)])
SHOWN = "Text: a b\nLabel: quite good\n\nText: c\nLabel: bad\n\n"


def tokenizer(frame="$A"):
    made = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", unk_token="<unk>")


def by_hand(model, tokens, context, names, most=33):
    """ln p of each name behind `context`, of which the last tokens are read that fit."""
    before = tokens(context, add_special_tokens=False)["input_ids"]
    found = []
    for name in names:
        after = tokens(name, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*before, *after][-most - 1 :]])
        with torch.no_grad():
            logs = model(input_ids=ids[:, :-1]).logits[0].log_softmax(-1)  # (tokens, vocabulary)
        found.append(sum(logs[place - len(after), token].item() for place, token in enumerate(after)))
    return found


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("Text: {text}\nLabel: {label}", ("Text: {labels} {}\nLabel:", " ")),
        ("{text}\n{label}", ("{labels} {}", "\n")),
        ("Of {labels}: {text} is {label}", ("Of bad, quite good: {labels} {} is", " ")),
    ],
)
def test_a_template_is_filled_and_texts_are_taken_as_they_are(template, expected):
    prompt = Prompt(template, ("bad", "quite_good"))
    assert (prompt.question("{labels} {}"), prompt.blank) == expected


@pytest.mark.parametrize(
    ("name", "base"), [("GPT2", "transformer"), ("Llama", "model")],
)  # fmt: skip
def test_the_language_model_of_a_classifier_is_the_one_that_it_was_made_of(name, base, tiny):
    origin = tiny(f"{name}ForCausalLM" if name == "Llama" else "GPT2LMHeadModel", tie_word_embeddings=True)
    made = tiny(f"{name}ForSequenceClassification", seed=7, tie_word_embeddings=True)
    getattr(made, base).load_state_dict(getattr(origin, base).state_dict())
    prompted.demand(made.config, "model")
    ids = torch.tensor([[5, 9, 17, 60]])
    with torch.no_grad():
        assert torch.equal(prompted.language_model(made)(input_ids=ids).logits, origin(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("BertForSequenceClassification", {}, "m is of type bert, which does not write"),
        ("BertForMeanClassification", {}, "m is of type regraft-mean-bert, which does not write"),
        ("LlamaForSequenceClassification", {"tie_word_embeddings": False}, "writes by a table of its own"),
    ],
)
def test_a_classifier_without_a_language_model_is_refused(name, more, message, tiny):
    with pytest.raises(CheckpointError, match=message):
        prompted.demand(tiny(name, **more).config, "m")


def test_an_output_table_that_is_missing_is_not_made_up(tiny):
    made = tiny("LlamaForSequenceClassification", tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"does not keep \(lm_head.weight\)"):
        prompted.language_model(made)


@pytest.mark.parametrize("frame", ["$A", "$A </s>"])
def test_likelihoods_are_those_of_the_names_behind_the_prompt(frame, tiny):
    """A token that closes every text is no part of a prompt, and no text is a template."""
    pytest.importorskip("lm_eval")
    model, tokens = tiny("GPT2LMHeadModel"), tokenizer(frame)
    texts = ["d e f", "{{ 'a' }} g", *(f"{word} h" for word in 9 * "ab")]
    found = prompted.score(model, tokens, PROMPT, texts)
    assert (found.likelihoods.shape, found.cut) == ((20, 2), 0)
    for text, row in zip(texts, found.likelihoods, strict=True):
        wanted = by_hand(model, tokens, f"{SHOWN}Text: {text}\nLabel:", ["bad", "quite good"])
        assert np.allclose(row, wanted, atol=1e-4)
    assert np.array_equal(found.likelihoods, prompted.score(model, tokens, PROMPT, texts).likelihoods)


def test_a_prompt_that_is_too_long_loses_its_beginning(tiny):
    pytest.importorskip("lm_eval")
    model, tokens = tiny("GPT2LMHeadModel"), tokenizer()
    texts = [" ".join("abcdefgh" * 2), "a", " ".join("abcdefgh" * 6)]
    found = prompted.score(model, tokens, PROMPT, texts)
    assert found.cut == 2
    for text, row in zip(texts, found.likelihoods, strict=True):
        wanted = by_hand(model, tokens, f"{SHOWN}Text: {text}\nLabel:", ["bad", "quite good"])
        assert np.allclose(row, wanted, atol=1e-4)
    alone = prompted.score(model, tokens, Prompt(PROMPT.template, PROMPT.labels), texts)
    assert np.allclose(alone.likelihoods[2], found.likelihoods[2], atol=1e-4)  # no demonstration is left
    assert not np.allclose(alone.likelihoods[1], found.likelihoods[1], atol=1e-4)
