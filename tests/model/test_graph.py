"""The graph computes what the model does, for other numbers of rows and tokens than it was traced with."""

import pytest
import torch

from tasks.errors import TrainingError
from tasks.model import graph

pytest.importorskip("onnxruntime", reason="ONNX comes with regraft[onnx]")
pytest.importorskip("onnxscript", reason="ONNX comes with regraft[onnx]")
PLAIN = ("input_ids", "attention_mask")


def _batch(lengths, *, pad):
    """Random tokens (rows, tokens), padded on the right."""
    longest = max(lengths)
    ids = torch.randint(5, 61, (len(lengths), longest), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.where(mask > 0, ids, pad), "attention_mask": mask}


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["DistilBertForSequenceClassification", "GPT2ForSequenceClassification"])
def test_batches_of_any_size_and_length_get_the_models_logits(tiny, tmp_path, name):
    """As do others, of whole projects, in tests/stages/test_export.py."""
    model = tiny(name, **{"n_layers" if name.startswith("Distil") else "n_layer": 1})
    model.config.use_cache = False
    graph.write(model, tmp_path / "model.onnx", inputs=PLAIN)
    asked = graph.asked(tmp_path / "model.onnx")
    for lengths in ([1], [33], [7, 1], [4, 33, 2, 12, 1], [3] * 40):
        given = _batch(lengths, pad=model.config.pad_token_id)
        with torch.inference_mode():
            expected = model(**given).logits
        torch.testing.assert_close(asked(given), expected, rtol=0, atol=1e-6)
    assert b"site-packages" not in (tmp_path / "model.onnx").read_bytes()


def test_what_cannot_be_traced_is_told(tiny, tmp_path):
    model = tiny("BertForSequenceClassification", num_hidden_layers=1)
    model.forward = lambda **given: model.config[str(given["input_ids"].sum().item())]
    with pytest.raises(TrainingError, match="torch cannot trace BertForSequenceClassification"):
        graph.write(model, tmp_path / "model.onnx", inputs=PLAIN)
    assert not list(tmp_path.iterdir())
