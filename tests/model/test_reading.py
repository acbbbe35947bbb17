"""What a model is asked about rows of each kind, against the stock class's own loss."""

from itertools import pairwise

import pyarrow as pa
import pytest
import torch
from torch.nn import functional

from tasks.errors import DataError
from tasks.model import reading
from tasks.model.batches import picked
from tasks.model.boundary import Cache
from tasks.model.frozen import READ, Frozen, border
from tasks.model.masked import Masked

LENGTHS = (6, 9, 4, 8, 5)
IDS = [[2, *range(7 + n, 5 + n + length), 3] for n, length in enumerate(LENGTHS)]
TARGET = [[11, 12, 3], [13, 3], [14, 15, 16, 3], [17, 3], [18, 19, 3]]
COLUMNS = {
    "label": {"label": [0, 2, 1, 0, 1]},
    "labels": {"labels": [[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 1, 0]]},
    "score": {"label": [0.5, -1.0, 2.0, 0.0, 1.0]},
    "tags": {"places": [[1, 2, 4], [1, 3], [1, 2], [5], [2, 3]], "tags": [[0, 1, 2], [1, 1], [0, 0], [2], [1, 0]]},
    "answer": {"start": [1, 2, 0, 3, 2], "end": [3, 2, 0, 6, 3]},
    "text": {},
    "chat": {"prompt_length": [3, 1, 2, 7, 0]},
    "completion": {"target_ids": TARGET},
    "translation": {"target_ids": TARGET},
}  # fmt: skip
CASES = [
    ("label", "BertForSequenceClassification"),
    ("label", "GPT2ForSequenceClassification"),
    ("label", "LlamaForSequenceClassification"),
    ("labels", "DistilBertForSequenceClassification"),
    ("score", "BertForSequenceClassification"),
    ("tags", "BertForTokenClassification"),
    ("tags", "LlamaForTokenClassification"),
    ("answer", "RobertaForQuestionAnswering"),
    ("text", "GPT2LMHeadModel"),
    ("text", "LlamaForCausalLM"),
    ("completion", "LlamaForCausalLM"),
    ("chat", "GPT2LMHeadModel"),
    ("translation", "T5ForConditionalGeneration"),
]
PLACES = [3, 0, 4, 2, 1]


def _table(kind, **more):
    return pa.table({"id": [f"r{n}" for n in range(5)], "input_ids": IDS, **COLUMNS[kind], **more})


def _asked(kind, model, **more):
    return reading.ask(_table(kind, **more), kind, model, special={"pad": 0, "mask": 4, "cls": 2, "sep": 3})


def _padded(rows, value):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)


def _stock_labels(kind):
    """What the stock class's `labels` would be, in the order of PLACES; -100 counts for nothing."""
    match kind:
        case "tags":
            rows = [[-100] * length for length in LENGTHS]
            for row, places, tags in zip(rows, *COLUMNS["tags"].values(), strict=True):
                for place, tag in zip(places, tags, strict=True):
                    row[place] = tag
        case "text":
            rows = IDS
        case "chat":
            rows = [
                [-100] * first + ids[first:]
                for first, ids in zip(COLUMNS[kind]["prompt_length"], IDS, strict=True)
            ]
        case "completion":
            rows = [[-100] * len(ids) + target for ids, target in zip(IDS, TARGET, strict=True)]
        case "translation":
            rows = TARGET
        case _:
            column = torch.tensor(next(iter(COLUMNS[kind].values())))
            return column[PLACES].float() if kind == "labels" else column[PLACES]
    return _padded([rows[place] for place in PLACES], -100)


def _stock_loss(kind, model, rows):
    if kind == "answer":  # a row at a time: among others the stock class takes padding for possible answers
        losses = [
            model(
                **rows.batch([place], model.device),
                start_positions=torch.tensor([COLUMNS[kind]["start"][place]]),
                end_positions=torch.tensor([COLUMNS[kind]["end"][place]]),
            ).loss
            for place in PLACES
        ]
        return torch.stack(losses).mean()
    given = rows.batch(PLACES, model.device)
    if kind == "score":
        return functional.mse_loss(model(**given).logits[:, 0], _stock_labels(kind))
    kinds = {"label": "single_label_classification", "labels": "multi_label_classification"}
    model.config.problem_type = kinds.get(kind)
    if kind == "translation":
        given = {name: value for name, value in given.items() if not name.startswith("decoder")}
    return model(**given, labels=_stock_labels(kind)).loss


def _mean(kind, logits, targets):
    """The kind's loss as torch defines it: the objective's own code is not asked."""
    if kind == "score":
        return functional.mse_loss(logits[:, 0], targets).item()
    if kind == "labels":
        return functional.binary_cross_entropy_with_logits(logits, targets).item()
    if kind != "answer":
        return functional.cross_entropy(logits, targets).item()
    begins = [*torch.nonzero(targets[:, 2])[:, 0].tolist(), len(targets)]
    parts = [slice(*pair) for pair in pairwise(begins)]
    losses = [
        functional.cross_entropy(logits[part, side], targets[part, side].argmax())
        for part in parts
        for side in (0, 1)
    ]
    return torch.stack(losses).mean().item()


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_loss_is_the_stock_classes_own(tiny, tmp_path, kind, name):
    model = tiny(name)
    asked = _asked(kind, model)
    with torch.no_grad():
        expected = _stock_loss(kind, model, asked.rows)
        logits = Frozen(model, Cache(tmp_path, "float32", 10**9)).whole(asked.rows)(PLACES)
    assert _mean(kind, logits, asked.targets(PLACES)) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[0] != "translation"])
@pytest.mark.parametrize("start", [2, 4])
def test_kept_states_give_the_logits_of_what_is_computed(tiny, tmp_path, kind, name, start):
    model = tiny(name)
    asked, made = _asked(kind, model), Frozen(model, Cache(tmp_path, "float32", 10**9))
    kept = made.gather(asked.rows, "rows", [border(2), READ], about="test")
    with torch.no_grad():
        expected = made.whole(asked.rows)(PLACES)
        found = made.above(kept[made.name(start)], start, asked.rows)(PLACES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_text_for_an_encoder_is_hidden_in_part(tiny):
    model = tiny("BertForMaskedLM")
    asked = _asked("text", model)
    assert isinstance(asked.rows, Masked)
    with torch.no_grad():
        hidden = model.base_model(**asked.rows.batch(PLACES, model.device)).last_hidden_state
    assert len(picked(hidden, asked.rows.positions(PLACES))) == len(asked.targets(PLACES)) >= len(PLACES)


def test_text_for_an_encoder_without_a_masking_token_is_refused(tiny):
    with pytest.raises(DataError, match="the tokenizer has no masking token"):
        reading.ask(_table("text"), "text", tiny("BertForMaskedLM"), special={"pad": 0})


def test_rows_that_were_cut_before_their_answer_are_left_out_and_named(tiny):
    model = tiny("GPT2LMHeadModel")
    asked = _asked("chat", model, prompt_length=[3, 9, 2, 7, 5])
    assert asked.silent == ["r1", "r4"]
    assert asked.ids == ["r0", "r2", "r3"]
    assert asked.targets([1, 2]).tolist() == [*IDS[2][2:], *IDS[3][7:]]
    assert asked.rows.batch([1], model.device)["input_ids"].tolist() == [IDS[2]]


def test_a_token_beyond_the_models_table_is_told(tiny):
    with pytest.raises(DataError, match=r"hold token 60, and the model's table has 60 rows"):
        _asked("completion", tiny("LlamaForCausalLM", vocab_size=60), target_ids=[[60]] * 5)


def test_every_kind_that_can_be_asked_about_is_tested():
    assert {kind for kind, _ in CASES} | {"pair", "prefix-remainder"} == reading.FORMS.keys()


@pytest.mark.parametrize("name", ["GPT2ForSequenceClassification", "LlamaForSequenceClassification"])
def test_where_the_end_of_a_text_is_taken_for_padding_the_token_before_is_read_as_the_stock_class_does(
    tiny, tmp_path, name
):
    model = tiny(name, pad_token_id=3)  # which ends every row
    table = _table("label").set_column(1, "input_ids", pa.array([*IDS[:4], [3, 3]]))
    asked = reading.ask(table, "label", model, special={"pad": 3})
    with torch.no_grad():
        expected = model(**asked.rows.batch(PLACES, model.device)).logits
        found = Frozen(model, Cache(tmp_path, "float32", 10**9)).whole(asked.rows)(PLACES)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert [int(place) for place in asked.rows.read.values] == [4, 7, 2, 6, 0]


def test_rows_without_a_token_to_hide_are_left_out_and_named(tiny):
    table = _table("text").set_column(1, "input_ids", pa.array([*IDS[:3], [2, 3], IDS[4]]))
    special = {"pad": 0, "mask": 4, "cls": 2, "sep": 3}
    asked = reading.ask(table, "text", tiny("BertForMaskedLM"), special=special)
    assert asked.silent == ["r3"]
    assert asked.ids == ["r0", "r1", "r2", "r4"]
    assert len(asked.targets([3])) >= 1
