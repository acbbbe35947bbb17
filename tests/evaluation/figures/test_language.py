import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

from tasks.errors import DataError
from tasks.evaluation import baselines
from tasks.evaluation.asking import predict, sequences
from tasks.evaluation.asking.sequences import Wording
from tasks.evaluation.baselines import Inputs
from tasks.evaluation.figures import language
from tasks.evaluation.figures.language import METRICS

IDS = [[5, 6, 7, 8], [9, 4], [3, 5, 3, 9, 9, 9]]


def _decode(rows):
    return ["".join(chr(96 + token) for token in row if token > 3) for row in rows]


def _read(tmp_path, kind="text", mask=None, **columns):
    table = {"id": ["a", "b", "c"], "input_ids": pa.array(IDS, pa.list_(pa.int32())), **columns}
    pq.write_table(pa.table(table), tmp_path / "test.parquet")
    return sequences.read(tmp_path / "test.parquet", kind, Wording(_decode, frozenset({3}), mask))


def test_figures_by_hand():
    actual = np.array([[3, 10], [1, 6], [0, 0]])
    answer = np.array([[3 * np.log(4), 2], [np.log(4), 0], [0, 0]])
    assert METRICS["loss"](actual, answer) == pytest.approx(np.log(4))
    assert METRICS["perplexity"](actual, answer) == pytest.approx(4)
    assert METRICS["bits_per_byte"](actual, answer) == pytest.approx(8 / 16)
    assert METRICS["token_accuracy"](actual, answer) == 0.5
    assert language.row_score(actual, answer) == pytest.approx([-0.6, -2 / 6, 0])


def test_each_token_but_the_first_is_foreseen_from_the_one_before_it(tmp_path):
    rows, texts = _read(tmp_path)
    assert [list(places) for places in rows.tokens["places"]] == [[0, 1, 2], [0], [0, 1, 2, 3, 4]]
    assert rows.tokens["targets"] == [row[1:] for row in IDS] == rows.answered
    assert rows.actual.tolist() == [[3, 3], [1, 1], [5, 4]]
    assert texts == ["efgh", "id", "eiii"]


def test_of_a_completion_and_a_chat_only_the_answer_is_foreseen(tmp_path):
    rows, _ = _read(tmp_path, "completion", target_ids=pa.array([[7], [8, 8], []], pa.list_(pa.int32())))
    assert rows.tokens["targets"] == [[7], [8, 8], []]
    assert [list(places) for places in rows.tokens["places"]] == [[3], [1, 2], []]
    rows, _ = _read(tmp_path, "chat", prompt_length=[2, 0, 6])
    assert rows.tokens["targets"] == [[7, 8], [4], []]


def test_hidden_tokens_are_text_and_always_the_same(tmp_path):
    rows, _ = _read(tmp_path, mask=2)
    assert [len(targets) for targets in rows.tokens["targets"]] == [1, 1, 1]
    for before, after, places, targets in zip(
        IDS, rows.tokens["input_ids"], rows.tokens["places"], rows.tokens["targets"], strict=True
    ):
        assert [before[place] for place in places] == targets
        assert 3 not in targets
        assert after == [2 if n in places else token for n, token in enumerate(before)]
    assert _read(tmp_path, mask=2)[0].tokens == rows.tokens


def test_packed_rows_are_numbered_and_a_split_without_rows_is_named(tmp_path):
    pq.write_table(pa.table({"input_ids": pa.array(IDS, pa.list_(pa.int32()))}), tmp_path / "test.parquet")
    wording = Wording(_decode, frozenset(), None)
    assert sequences.read(tmp_path / "test.parquet", "text", wording)[0].ids == ("row 0", "row 1", "row 2")
    pq.write_table(pa.table({"input_ids": pa.array([], pa.list_(pa.int32()))}), tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet has no rows"):
        sequences.read(tmp_path / "test.parquet", "text", wording)


def _batches(rows):
    """One row at a time, the last first."""
    for number in reversed(range(3)):
        yield [number], {"input_ids": torch.tensor([rows["input_ids"][number]])}


def test_likelihoods_are_the_models_own_loss(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=12, n_layer=1, n_head=2, n_positions=9)).eval()
    rows, _ = _read(tmp_path)
    found = predict.answers(model, rows.tokens, kind="text", ids=rows.ids, batches=_batches)
    for ids, (loss, _), (tokens, _) in zip(IDS, found, rows.actual, strict=True):
        given = torch.tensor([ids])
        with torch.no_grad():
            assert loss / tokens == pytest.approx(model(input_ids=given, labels=given).loss.item(), rel=1e-5)
    assert predict.affordable(model, rows.tokens, 64) == 64
    model.config.vocab_size = 2**22
    assert predict.affordable(model, rows.tokens, 64) == 1


def test_likelihoods_of_hidden_tokens_are_the_models_own_loss(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = BertForMaskedLM(config).eval()
    rows, _ = _read(tmp_path, mask=2)
    found = predict.answers(model, rows.tokens, kind="text", ids=rows.ids, batches=_batches)
    for number, ids in enumerate(IDS):
        hidden = torch.tensor([rows.tokens["input_ids"][number]])
        wanted = torch.where(hidden == 2, torch.tensor([ids]), -100)
        with torch.no_grad():
            own = model(input_ids=hidden, labels=wanted).loss.item()
        assert found[number, 0] / rows.actual[number, 0] == pytest.approx(own, rel=1e-5)


def test_a_unigram_counts_every_token_once_more():
    train = Inputs([], lambda: None, [[1, 1, 2]])
    test = Inputs([], lambda: None, [[1, 2], [0], []])
    found = baselines.BASELINES["text"]["unigram"].answer(train, np.empty(0), test, 4)
    assert found == pytest.approx(np.array([[-np.log(3 / 7 * 2 / 7), 1], [-np.log(1 / 7), 0], [0, 0]]))
