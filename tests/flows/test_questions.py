"""Rows that the shipped data has not: a question about a text, from a table to the champion's answer."""

import json
import random

import pytest

from tasks.artifacts import Evaluation, Promotion

SAID = ("lovely", "great", "superb", "awful", "dreadful", "broken")
OTHERS = ("the", "food", "room", "staff", "train", "phone", "film", "book", "garden", "music")
PHASES = (
    "[{name: head, depth: 0, epochs: 2, learning_rate: 1.0e-2}, "
    "{name: whole, depth: all, epochs: 12, learning_rate: 5.0e-3}]"
)


def _write(path):
    """Texts in which one word says how something was."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(400):
            word = chance.choice(SAID)
            before, after = (chance.choices(OTHERS, k=chance.randint(2, 6)) for _ in range(2))
            context = " ".join([*before, word, *after])
            answers = {"text": [word], "answer_start": [context.index(word)]}
            row = {"context": context, "question": " ".join(chance.choices(OTHERS, k=2)), "answers": answers}
            stream.write(json.dumps(row) + "\n")


@pytest.mark.e2e
def test_a_question_about_a_text_reaches_a_champion_that_answers(project, command):
    _write(project / "questions.jsonl")
    command(
        "regraft", "init", "questions.jsonl", "--kind", "answer", "--force",
        "-S", "promotion.model=questions", "-S", "promotion.gate.must_beat=[]",
        "-S", "evaluation.baselines=auto", "-S", f"finetuning.phases={PHASES}",
    )  # fmt: skip
    command("dvc", "repro", "promotion")
    found = Evaluation.load(project)
    assert found.metrics["model"]["exact_match"]["value"] > 0.8
    assert {"model"} < found.metrics.keys(), "there is a baseline beside it"
    assert "questions" in (project / "reports" / "promotion.md").read_text(encoding="utf-8")
    assert Promotion.load(project).alias_moved
    context = "the food superb room phone"
    assert command("regraft", "predict", context, "--pair", "film book").stdout.strip() == "superb"
