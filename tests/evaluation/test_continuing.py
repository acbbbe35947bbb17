"""Texts that are longer than a language model has positions for."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tasks.evaluation import continuing

WORDS = ["<pad>", "<end>", *(f"w{number}" for number in range(10))]


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=12, n_embd=24, n_layer=1, n_head=3, n_positions=20, pad_token_id=0)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def tokenizer():
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


@pytest.mark.parametrize("count", [1, 10, 11, 19, 20, 80])
def test_a_text_of_any_length_is_continued_by_what_came_last(model, tokenizer, count):
    text = " ".join(f"w{number * 7 % 10}" for number in range(count))
    last = " ".join(text.split()[-10:])
    (said,) = continuing.continuations(model, tokenizer, [text], kind="text")
    assert [said] == continuing.continuations(model, tokenizer, [last], kind="text")
    assert 0 <= len(said.split()) <= 10
