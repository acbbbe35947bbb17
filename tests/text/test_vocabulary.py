import json
from contextlib import suppress

import pytest

from tasks.errors import CheckpointError
from tasks.text import vocabulary


def test_a_tokenizer_is_aligned_with_the_table_it_came_from(tiny_checkpoint):
    tokenizer = vocabulary.load(tiny_checkpoint())
    columns = vocabulary.alignment(tokenizer)
    assert columns["id"] == columns["source_id"] == list(range(8))
    assert columns["token"][5:] == ["one", "two", "three"]
    assert set(columns["origin"]) == {"kept"}
    assert vocabulary.size(tokenizer) == 8


def test_special_tokens_are_those_the_tokenizer_has(tiny_checkpoint):
    tokenizer = vocabulary.load(tiny_checkpoint())
    assert vocabulary.special(tokenizer) == {"unk": 1, "sep": 3, "pad": 0, "cls": 2, "mask": 4}


def test_an_adopted_tokenizer_states_the_model_length_and_forgets_where_it_was(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint()
    tokenizer = vocabulary.load(folder)
    vocabulary.adopt(tokenizer, folder / "config.json")
    tokenizer.save_pretrained(tmp_path / "out")
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert str(tmp_path) not in written
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["model_max_length"] == 12
    assert vocabulary.load(tmp_path / "out").get_vocab() == tokenizer.get_vocab()


def test_a_directory_without_a_tokenizer_is_refused(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no tokenizer \(none of tokenizer.json, vocab.txt"):
        vocabulary.load(folder)


def test_a_torn_tokenizer_is_refused(tiny_checkpoint):
    folder = tiny_checkpoint()
    (folder / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(CheckpointError, match="cannot be read"):
        vocabulary.load(folder)


def test_tokens_beyond_the_embedding_table_are_named(tiny_checkpoint):
    folder = tiny_checkpoint(vocab_size=6)
    with pytest.raises(CheckpointError, match=r"2 tokens lie beyond the 6 rows .*the first 'two' with id 6"):
        vocabulary.adopt(vocabulary.load(folder), folder / "config.json")


def test_code_in_a_checkpoint_does_not_run(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint()
    about = json.loads((folder / "tokenizer_config.json").read_text())
    about |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with suppress(CheckpointError):
        vocabulary.load(folder)
    assert not (tmp_path / "ran").exists()
