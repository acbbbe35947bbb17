"""Texts that are longer than a language model has positions for."""

from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tasks.evaluation.asking import continuing
from tasks.evaluation.asking.continuing import Writer
from tasks.model import batches

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


def test_every_row_is_translated_in_its_own_place(tiny):
    model = tiny("T5ForConditionalGeneration").eval()
    rows = {"input_ids": [[5, 6, 1], [7, 8, 9, 10, 1], [5, 6, 1], [11, 1]]}
    spell = lambda ids: [" ".join(map(str, row[1:])) for row in ids]  # noqa: E731
    cut = partial(batches.sorted_batches, batch_size=2, pad=0)
    found = continuing.translations(model, rows, writer=Writer(spell, 4), batches=cut)
    assert found[0] == found[2]
    for row, said in zip(rows["input_ids"], found, strict=True):
        alone = model.generate(torch.tensor([row]), max_new_tokens=4, do_sample=False)
        assert said.split()[: alone.shape[1] - 1] == list(map(str, alone[0, 1:].tolist()))
