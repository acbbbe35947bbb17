"""Texts that are longer than a language model has positions for."""

from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tasks.errors import TrainingError
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


@pytest.mark.parametrize("pad", ["<pad>", None])
def test_rows_of_one_batch_go_on_as_each_alone_to_its_own_limit_or_end(model, tokenizer, pad):
    texts = ["w1 w2 w3 w4 w5 w6 w7", "w9", "w4 w4 w2 " * 30, "w3 w8"]
    rows = [continuing.prompt(model, tokenizer, text, kind="text") for text in texts]
    assert [len(row) for row in rows] == [7, 1, 10, 2], "of the longest the last"
    ids, mask = batches.Ragged.of(rows).padded(range(4), pad=0, left=True)
    given = {"input_ids": ids, "attention_mask": mask}
    alone = [tuple(_alone(model, row)) for row in rows]
    tokenizer.eos_token, tokenizer.pad_token = WORDS[alone[0][3]], pad
    for limits in ((10, 10, 10, 10), (10, 1, 4, 2)):
        expected = []
        for tokens, limit in zip(alone, limits, strict=True):
            own = tokens[:limit]
            end = own.index(alone[0][3]) if alone[0][3] in own else None
            expected.append((" ".join(WORDS[token] for token in own[:end] if token), end is not None))
        found = continuing.go_on(model.generate, tokenizer, given, limits)
        assert [(one.text, one.ended) for one in found] == expected
        assert {one.ended for one in found} == {True, False}


def _alone(model, row):
    """Ten tokens by the plainest way."""
    ids = torch.tensor([row])
    for _ in range(10):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(dim=-1)], dim=1)
    return ids[0, len(row) :].tolist()


def test_a_row_whose_logits_are_no_numbers_is_told_and_the_others_go_on(model, tokenizer):
    (one,) = continuing.continuations(model, tokenizer, ["w1 w2"], kind="text")

    def lost(module, given, said):
        """The second row's first token is lost."""
        return said.index_fill(0, torch.tensor([1]), torch.nan) if said.shape[1] > 1 else said

    def broken(input_ids, **more):
        handle = model.transformer.h[0].mlp.register_forward_hook(lost)
        try:
            return model.generate(input_ids=input_ids, **more)
        finally:
            handle.remove()

    ids = torch.tensor([[3, 4], [3, 4]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    found, none = continuing.go_on(broken, tokenizer, given, [10, 10])
    assert found.text == one
    assert none is None
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="no numbers: its weights have diverged"):
        continuing.continuations(model, tokenizer, ["w1 w2"], kind="text")


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
