"""Whether an encoder still hears what sentences mean: paraphrases must lie closer than unrelated sentences.

Sentence vectors are means over tokens and their likeness is the cosine (Reimers & Gurevych, 2019,
Sentence-BERT). The level sees a vocabulary that moved, weights that were drawn anew and every query, value or
output matrix transposed; a single transposed matrix may pass it (all-MiniLM-L6-v2's margin of 0.35 then still
is 0.09 to 0.37) and is what `parity` is for.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from tasks import architectures
from tasks.errors import ProofError
from tasks.weights import language, tokenizer
from tasks.weights.loading import places
from tasks.weights.tokenizer import Encode

MARGIN = 0.1  # all-MiniLM-L6-v2 has 0.35, with all query matrices transposed 0.01, drawn anew -0.02
LONGEST = 64  # tokens of a sentence
PARAPHRASES = (
    ("The cat is asleep on the sofa.", "A kitten is sleeping on the couch."),
    ("It has been raining heavily all day.", "The downpour has not stopped since morning."),
    ("She bought a new car last week.", "A few days ago she purchased an automobile."),
    ("The doctor told him to give up smoking.", "His physician advised him to stop using cigarettes."),
    ("How can I learn to play the guitar?", "What is the best way to study the guitar?"),
    ("Shares of the company fell sharply.", "The firm's stock price dropped steeply."),
)
SENTENCES = tuple(sentence for pair in PARAPHRASES for sentence in pair)


@dataclass(frozen=True)
class Likeness:
    """Cosines of sentences: the lowest of two paraphrases, the highest of two that have nothing in common."""

    paraphrases: float
    unrelated: float

    @property
    def margin(self) -> float:
        return self.paraphrases - self.unrelated

    @property
    def apart(self) -> bool:
        return self.margin >= MARGIN  # so written, NaN fails

    def __str__(self) -> str:
        return (
            f"cosines of {len(PARAPHRASES)} paraphrases from {self.paraphrases:.2f} up, "
            f"of unrelated sentences up to {self.unrelated:.2f}"
        )


def fits(architecture: str) -> bool:
    """Whether transformers' class `architecture` is an encoder."""
    kind = architectures.body_type(architectures.find(architecture).config_class.model_type)
    return kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not language.fits(architecture)


def measure(model: PreTrainedModel, encode: Encode) -> Likeness:
    """What `model`, whose head is not asked, hears in SENTENCES."""
    directions = torch.nn.functional.normalize(_vectors(model, encode), dim=-1)
    cosines = directions @ directions.T
    pair = torch.arange(len(SENTENCES)) // 2
    same = pair[:, None] == pair
    alike = cosines[same & ~torch.eye(len(SENTENCES), dtype=torch.bool)]
    return Likeness(float(alike.min()), float(cosines[~same].max()))


def judge(ours: Likeness, theirs: Likeness | None) -> str:
    """What was found; where the source itself does not tell them apart, that nothing can be.

    Raises ProofError where the converted model does not tell apart what the source does, or, without one,
    what any encoder of English sentences does.
    """
    if theirs and not theirs.apart:
        return unjudged(f"the source does not tell English sentences apart itself ({theirs})")
    if not ours.apart:
        source = f"; the source has {theirs}" if theirs else ""
        raise ProofError(
            f"paraphrases are not closer than unrelated sentences by {MARGIN}: {ours}{source}: look at the "
            "vocabulary's order and at transposed rules"
        )
    return str(ours)


def unjudged(why: str) -> str:
    return f"not judged: {why}"


def _vectors(model: PreTrainedModel, encode: Encode) -> torch.Tensor:
    """Means over each sentence's tokens, (sentences, width)."""
    longest, pad = places(model.config, LONGEST), model.config.pad_token_id or 0
    found = [tokenizer.ids(encode, one, vocabulary=model.config.vocab_size)[:longest] for one in SENTENCES]
    rows = [torch.tensor(ids) for ids in found]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)  # (sentences, tokens)
    with torch.no_grad():
        ids = pad_sequence(rows, batch_first=True, padding_value=pad)
        states = model.base_model(input_ids=ids, attention_mask=mask)[0]  # (sentences, tokens, width)
    means: torch.Tensor = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return means
