import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tasks.errors import DataError, ParamsError
from tasks.text.tokens import learn, vocabulary

REPOSITORY = Path(__file__).parents[3]
WORDS = "the quick brown fox jumped over lazy dogs jumping quickly overly foxes browned thee lazily doggedly"
TEXTS = [
    f"{a} {b}{n % 7} naïve"
    for n, (a, b) in enumerate(zip(WORDS.split() * 9, WORDS.split()[3:] * 12, strict=False))
]
MODELS = ("bpe", "wordpiece", "unigram")


def word_pieces(tiny_checkpoint):
    tokenizer = vocabulary.load(tiny_checkpoint(["the", "fox"]))
    state = tokenizer.backend_tokenizer
    state.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def byte_pieces(unknown=None):
    """As RoBERTa: bytes, a frame of its own kind."""
    alphabet = {piece: n + 3 for n, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    state = Tokenizer(models.BPE({"<s>": 0, "<pad>": 1, "</s>": 2, **alphabet, "Ġthe": 300}, []))
    state.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    state.decoder = decoders.ByteLevel()
    state.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=state, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>",
        unk_token=unknown,
    )  # fmt: skip


def train(checkpoint, model, size=330, texts=TEXTS):
    return learn.train(
        checkpoint, lambda: iter([texts[:50], texts[50:]]), model=model, size=size, minimum_frequency=2
    )


@pytest.mark.parametrize("model", MODELS)
def test_roles_and_frame_are_the_checkpoints(tiny_checkpoint, model):
    checkpoint = word_pieces(tiny_checkpoint)
    found = train(checkpoint, model)
    assert vocabulary.special(found).keys() == vocabulary.special(checkpoint).keys()
    assert found.special_tokens_map == checkpoint.special_tokens_map
    pieces = found.convert_ids_to_tokens(found("The fox", "dogs")["input_ids"])
    assert (pieces[0], pieces[-1], pieces.count("[SEP]")) == ("[CLS]", "[SEP]", 2)
    assert found.decode(found("The Fox")["input_ids"], skip_special_tokens=True) == "the fox"
    assert len(found) <= 330


@pytest.mark.parametrize("unknown", [None, "<s>"])
def test_a_frame_of_another_kind_gets_the_new_ids(unknown):
    checkpoint = byte_pieces(unknown)
    found = train(checkpoint, "bpe")
    ids = found("the fox")["input_ids"]
    assert (ids[0], ids[-1]) == (found.cls_token_id, found.sep_token_id)
    assert found.decode(ids, skip_special_tokens=True) == "the fox"
    assert not train(checkpoint, "bpe", size=259).get_vocab().keys() - checkpoint.get_vocab().keys()


@pytest.mark.parametrize("model", MODELS)
def test_it_survives_being_written_and_read(tiny_checkpoint, tmp_path, model):
    found = train(word_pieces(tiny_checkpoint), model)
    found.save_pretrained(tmp_path / "out")
    again = vocabulary.load(tmp_path / "out")
    assert again("the lazy fox", "dog")["input_ids"] == found("the lazy fox", "dog")["input_ids"]
    assert again.get_vocab() == found.get_vocab()


def digests(checkpoint):
    return [
        hashlib.sha256(train(checkpoint, model).backend_tokenizer.to_str().encode()).hexdigest()
        for model in MODELS
    ]


@pytest.mark.e2e
def test_the_same_texts_give_the_same_bytes_in_another_process(tiny_checkpoint, tmp_path):
    checkpoint = word_pieces(tiny_checkpoint)
    checkpoint.save_pretrained(tmp_path / "saved")
    code = (
        "import sys; from pathlib import Path; sys.path[:0] = sys.argv[1:3]; import test_learn;"
        "from tasks.text.tokens import vocabulary; print(*test_learn.digests(vocabulary.load(Path(sys.argv[3]))))"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(Path(__file__).parent),
        str(REPOSITORY),
        str(tmp_path / "saved"),
    ]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert told == digests(vocabulary.load(tmp_path / "saved"))


def test_tokens_are_matched_by_role_and_by_what_they_spell(tiny_checkpoint):
    theirs, ours = byte_pieces("<s>"), train(word_pieces(tiny_checkpoint), "wordpiece")
    rows = {row["token"]: row for row in vocabulary.alignment(ours, theirs, kept=False, added=()).to_pylist()}
    assert (rows["[SEP]"]["source_id"], rows["[SEP]"]["origin"]) == (2, "matched")
    assert rows["the"]["source_id"] == 300
    assert rows["##o"]["source_id"] == theirs.get_vocab()["o"]
    assert (rows["fox"]["source_id"], rows["fox"]["origin"]) == (None, "trained")
    assert all(row["source_id"] is None for token, row in rows.items() if token == "[MASK]")


def test_a_trained_token_is_cut_as_the_text_that_it_spells(tiny_checkpoint):
    theirs = byte_pieces()
    ours = train(word_pieces(tiny_checkpoint), "wordpiece")
    rows = {row["token"]: row for row in vocabulary.alignment(ours, theirs, kept=False, added=()).to_pylist()}
    assert theirs.decode(rows["fox"]["pieces"]) == " fox"
    assert theirs.decode(rows["##ed"]["pieces"]) == "ed"
    assert rows["the"]["pieces"] == []


def test_a_token_of_half_a_character_has_no_pieces(tiny_checkpoint):
    ours = train(byte_pieces(), "bpe")
    rows = vocabulary.alignment(ours, word_pieces(tiny_checkpoint), kept=False, added=()).to_pylist()
    half = [row for row in rows if row["token"] == "Ã"]
    assert [(row["source_id"], row["pieces"]) for row in half] == [(None, [])]


@pytest.mark.parametrize(
    ("model", "size", "texts", "error", "message"),
    [
        (
            "bpe",
            100,
            TEXTS,
            ParamsError,
            "size = 100 cannot hold the 256 single characters and 3 special tokens that bpe begins with: raise it to 259",
        ),
        ("wordpiece", 300, TEXTS, ParamsError, "wordpiece needs a token for unknown characters.*take bpe"),
        ("bpe", 300, ["", " "], DataError, "holds no word to train a tokenizer on"),
    ],
)
def test_what_cannot_be_learned_is_refused(model, size, texts, error, message):
    with pytest.raises(error, match=message):
        train(byte_pieces(), model, size, texts)


def test_a_size_below_the_characters_is_refused(tiny_checkpoint):
    for model in ("wordpiece", "unigram"):
        with pytest.raises(ParamsError, match=f"that {model} begins with: raise it to"):
            train(word_pieces(tiny_checkpoint), model, 20)
