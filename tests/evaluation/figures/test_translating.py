import numpy as np
import pytest
from sacrebleu import corpus_bleu, corpus_chrf, sentence_chrf

from tasks.evaluation.figures import translating

TRUE = ["the cat sat on the mat in the hall", "a dog barked at night", "it rained"]
SAID = ["the cat sat on a mat in the hall", "the dog barked", "it rained"]


def test_figures_are_those_of_sacrebleu():
    given, told = translating.counted(np.array(TRUE), np.array(SAID))
    assert translating.bleu(given, told) == pytest.approx(corpus_bleu(SAID, [TRUE]).score)
    assert translating.chrf(given, told) == pytest.approx(corpus_chrf(SAID, [TRUE]).score)
    assert translating.exact_match(given, told) == pytest.approx(1 / 3)


def test_rows_that_are_drawn_again_have_the_figures_of_their_own_corpus():
    given, told = translating.counted(np.array(TRUE), np.array(SAID))
    drawn = [0, 0, 1]
    true, said = ([texts[row] for row in drawn] for texts in (TRUE, SAID))
    assert translating.bleu(given[drawn], told[drawn]) == pytest.approx(corpus_bleu(said, [true]).score)


def test_a_rows_score_is_its_chrf():
    found = translating.row_score(np.array(TRUE), np.array(SAID))
    wanted = [sentence_chrf(said, [true]).score / 100 for said, true in zip(SAID, TRUE, strict=True)]
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("true", "said", "share"),
    [("a b c d", "a x c d", 0.75), ("a b", "b a", 0.5), ("", "", 1.0), ("a", "", 0.0)],
)
def test_rouge_l_counts_words_that_stand_in_the_same_order(true, said, share):
    assert translating.longest_shared(true.split(), said.split()) == pytest.approx(share)


def test_rouge_l_is_that_of_its_first_implementation():
    """Of words without marks, which that leaves out."""
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    given, told = translating.counted(np.array(TRUE), np.array(SAID))
    wanted = [scorer.score(true, said)["rougeL"].fmeasure for true, said in zip(TRUE, SAID, strict=True)]
    assert translating.rouge_l(given, told) == pytest.approx(np.mean(wanted))
