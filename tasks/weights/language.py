"""Whether a causal language model still knows English: its loss on a text, and what it goes on to write.

The bounds were measured on SmolLM2-135M-Instruct (4 bits): loss 3.17 nats a token, 0.29 of ln(49,152), and
0.94 of the 3-grams distinct. With every output matrix transposed 1.01 and 0.18, every query matrix 0.76 and
0.21, drawn anew 1.02 and 0.16. One query matrix of the first layer makes it 0.44 and 0.49, the order of the
rotary rows left out 0.48 and 0.44, which only `generation` sees; one output matrix of a middle layer 0.31 and
0.87, which nothing sees but a reference.
"""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from tasks.errors import ProofError
from tasks.weights import tokenizer
from tasks.weights.loading import places
from tasks.weights.tokenizer import Encode

TEXT = Path(__file__).parents[1] / "english.txt"  # Lewis Carroll, Alice's Adventures in Wonderland (1865)
PROMPTS = ("Once upon a time there was", "The capital of France is", "To make a cup of tea, you first")
WINDOW, TOKENS = 512, 32  # tokens of the text read at once; greedy tokens for each prompt
BOUND = 0.6  # of ln(vocabulary), which is what a model that knows nothing loses
CLOSE = 1e-3  # relative difference from the reference's loss
# Of the 3-grams that are distinct. Greedy text of sound models repeats itself too: 44 % of the 4-grams of 100
# tokens (Welleck et al., 2020, Neural text generation with unlikelihood training).
DISTINCT, LENGTH = 0.5, 3
COMMONEST = 0.5  # share of one token, from which the tokenizer does not know the text


def fits(architecture: str) -> bool:
    """Whether transformers' class `architecture` is a causal language model."""
    return architecture in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def loss(model: PreTrainedModel, encode: Encode) -> float:
    """Mean cross-entropy of TEXT in nats a token, over windows that the model has positions for.

    Raises ProofError where the tokenizer has no words for it.
    """
    found = tokenizer.ids(encode, TEXT.read_text(encoding="utf-8"), vocabulary=model.config.vocab_size)
    if not found or max(map(found.count, {*found})) > COMMONEST * len(found):
        raise ProofError("the tokenizer does not know English: leave the levels loss and generation out")
    size = places(model.config, WINDOW)
    windows = [found[start : start + size] for start in range(0, len(found), size)]
    summed = sum(_lost(model, torch.tensor([window])) for window in windows if len(window) > 1)
    return summed / max(1, sum(len(window) - 1 for window in windows))


def _lost(model: PreTrainedModel, ids: torch.Tensor) -> float:
    """Sum of the cross-entropies of all tokens but the first; ids (1, tokens)."""
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].float()  # (tokens - 1, vocabulary)
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))


def judge_loss(ours: float, theirs: float | None, *, vocabulary: int) -> str:
    """What was found. Raises ProofError for a loss that is not the reference's, or near that of guessing."""
    guessing = math.log(vocabulary)
    if not ours <= BOUND * guessing:  # so written, NaN fails
        raise ProofError(
            f"loss on English text is {ours:.3f} nats a token, guessing has ln({vocabulary:,}) = "
            f"{guessing:.3f}; a trained model stays below {BOUND} of that: look at transposed rules, and at "
            "what config.json says of heads and positions"
        )
    told = f"{ours:.3f} nats a token of English text, guessing has {guessing:.3f}"
    if theirs is None:
        return told
    if not abs(ours - theirs) <= CLOSE * theirs:
        raise ProofError(
            f"loss on English text is {ours:.4f} nats a token, the reference has {theirs:.4f}, "
            f"which is more than {CLOSE:g} of it apart"
        )
    return f"{told}, the reference {theirs:.3f}"


def written(model: PreTrainedModel, encode: Encode) -> list[list[int]]:
    """The likeliest next tokens behind each prompt, one at a time; the end of text is not taken."""
    limit = places(model.config, WINDOW)
    count = min(TOKENS, max(1, limit // 2))
    found = (tokenizer.ids(encode, prompt, vocabulary=model.config.vocab_size) for prompt in PROMPTS)
    return [_greedy(model, prompt[: limit - count + 1], count) for prompt in found]


def _greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    end = model.config.eos_token_id
    ends = [end] if isinstance(end, int) else list(end or ())
    tokens, ids, past = list[int](), torch.tensor([prompt]), None
    for _ in range(count):
        with torch.no_grad():
            output = model(input_ids=ids, past_key_values=past, use_cache=True)
        logits, past = output.logits[0, -1], output.past_key_values  # (vocabulary)
        logits[ends] = -torch.inf
        tokens.append(int(logits.argmax()))
        ids = torch.tensor([tokens[-1:]])
    return tokens


def judge_generation(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]] | None) -> str:
    """What was found. Raises ProofError for other tokens than the reference's, or for text that repeats."""
    if theirs is not None:
        return _equal(ours, theirs)
    share = sum(map(distinct, ours)) / len(ours)
    if share < DISTINCT:
        raise ProofError(
            f"of the {LENGTH}-grams that it writes {share:.2f} are distinct, less than {DISTINCT}: it "
            "repeats itself as broken models do; a reference would tell, where there is one"
        )
    return f"{_size(ours)} written, {share:.2f} of their {LENGTH}-grams distinct"


def _equal(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> str:
    pairs = zip(chain(*ours), chain(*theirs), strict=True)
    if wrong := [place for place, (one, other) in enumerate(pairs) if one != other]:
        prompt, token = divmod(wrong[0], len(ours[0]))
        raise ProofError(
            f"behind {PROMPTS[prompt]!r} greedy token {token} is {ours[prompt][token]}, the reference writes "
            f"{theirs[prompt][token]}: the models differ"
        )
    return f"{_size(ours)} are the reference's"


def _size(tokens: Sequence[Sequence[int]]) -> str:
    return f"{len(tokens)} times {len(tokens[0])} greedy tokens"


def distinct(tokens: Sequence[int]) -> float:
    """Share of the n-grams, LENGTH long, that are different ones."""
    grams = [tuple(tokens[start : start + LENGTH]) for start in range(len(tokens) - LENGTH + 1)]
    return len({*grams}) / len(grams) if grams else 1.0
