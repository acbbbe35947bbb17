"""`regraft export` of a registered version, and the lines of the README that ask it without us."""

import re
from pathlib import Path

import numpy as np
import pytest

from flows.commands import exporting
from tasks.evaluation.telling import tempered
from tasks.stages.champion import Champion
from tasks.tracking import registry

pytest.importorskip("onnxruntime", reason="ONNX comes with regraft[onnx]")
pytest.importorskip("onnxscript", reason="ONNX comes with regraft[onnx]")
README = Path(__file__).parents[3] / "README.md"
SHOWN = '["what a lovely day", "late again"]'
TEXTS = ["good film", "bad", "film film bad", "a word it does not know", "good " * 40]


@pytest.fixture
def champion(champions, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Champion(*registry.find("models:/careful@champion", champions), "cpu")


def test_five_lines_of_the_readme_say_what_predict_says(champions, champion, tmp_path, monkeypatch):
    told = list(exporting.export("models:/careful@champion", tmp_path / "tweets", champions))
    assert told[0].startswith("onnxruntime agrees on 5 rows of 3 to 16 tokens: logits differ by at most ")
    assert told[1].startswith(f"{tmp_path / 'tweets'}: models:/careful/1, BertForSequenceClassification, ")
    section = README.read_text(encoding="utf-8").partition("### As ONNX")[2]
    snippet = re.search(r"```python\n(.*?)```", section, flags=re.S)[1]
    assert SHOWN in snippet
    monkeypatch.chdir(tmp_path)
    for code, texts in ((snippet, eval(SHOWN)), (snippet.replace(SHOWN, repr(TEXTS)), TEXTS)):
        found = {}
        exec(code, found)
        expected = tempered(champion.answers(texts), champion.kind, champion.decision)
        np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
        assert found["manner"]["labels"] == list(champion.labels)
    assert np.ptp(found["probabilities"][:, 0]) > 1e-3, "a constant would agree too"
