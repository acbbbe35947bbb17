import numpy as np
import polars as pl
import pytest

from tasks.errors import ArtifactError, ParamsError
from tasks.evaluation import slices
from tasks.evaluation.figures.metrics import METRICS, Sampling

TEXTS = ["no", "yes", "a row!", "longer row", "longer row too", "the very longest of all", "ab", "cd"]
ROWS = pl.DataFrame(
    {
        "id": [f"r{n}" for n in range(len(TEXTS))],
        "text": TEXTS,
        "label": ["bad", "good", "bad", "good", "bad", "bad", "good", "good"],
        "characters": [len(text) for text in TEXTS],
    }
)


def _cut(**asked):
    return {one.name: one for one in slices.cut(ROWS, ("bad", "good", "so so"), asked)}


def test_rows_are_cut_by_label_and_by_length():
    found = _cut()
    lengths = [f"length {n} of 4" for n in (1, 2, 3, 4)]
    assert list(found) == ["label = bad", "label = good", "label = so so", *lengths]
    assert found["label = bad"].mask.tolist() == (ROWS["label"] == "bad").to_list()
    assert not found["label = so so"].mask.any()
    assert found["length 4 of 4"].told == "14 to 23 characters"
    assert np.sum([found[name].mask for name in lengths], axis=0).tolist() == [1] * len(TEXTS)


def test_texts_of_one_length_stay_together():
    rows = pl.DataFrame({"characters": [5, 5, 5, 5, 5, 9]})
    found = slices.cut(rows, (), {})
    assert [(one.told, int(one.mask.sum())) for one in found] == [
        ("5 to 5 characters", 5),
        ("9 to 9 characters", 1),
    ]


def test_a_row_with_several_labels_is_in_the_slice_of_each():
    rows = pl.DataFrame({"labels": [["a", "b"], ["b"], []], "characters": [1, 2, 3]})
    found = {one.name: one.mask.tolist() for one in slices.cut(rows, ("a", "b"), {})}
    assert (found["label = a"], found["label = b"]) == ([True, False, False], [True, True, False])


def test_an_expression_that_is_true_or_false_makes_one_slice():
    found = _cut(shouting="text LIKE '%!%' AND label = 'bad'")
    assert found["shouting"].mask.nonzero()[0].tolist() == [2]
    assert found["shouting"].told == "text LIKE '%!%' AND label = 'bad'"


def test_an_expression_with_other_values_makes_a_slice_of_each():
    rows = ROWS.with_columns(topic=pl.Series(["x", "y", None, "x", "x", "y", "y", "y"]))
    found = {one.name: one.mask.sum() for one in slices.cut(rows, (), {"about": "topic"})}
    assert {name: count for name, count in found.items() if "about" in name} == {
        "about = x": 3,
        "about = y": 4,
    }


def _by(values, asked="group by"):
    rows = pl.DataFrame(
        {"characters": range(len(values)), "group by": values}, schema_overrides={"group by": pl.String}
    )
    found = slices.cut(rows, (), {"by": asked}, kept=["group by"])
    return {one.name: one for one in found if not one.name.startswith("length")}


def test_a_column_that_came_along_makes_a_slice_of_each_value_whatever_it_is_called():
    found = _by(["web", None, "shop", "web"])
    assert {name: one.mask.tolist() for name, one in found.items()} == {
        "by = shop": [False, False, True, False],
        "by = web": [True, False, False, True],
    }
    assert found["by = web"].told == "rows whose group by is web"
    assert list(_by(["web", "shop"], "\"group by\" = 'web'")) == ["by"]


@pytest.mark.parametrize(("many", "rest"), [(slices.VALUES, 0), (slices.VALUES + 2, 2)])
def test_the_rarest_of_many_values_that_came_along_are_one_slice(many, rest):
    names = [f"v{number:03}" for number in range(many)]
    found = _by([*names, *names[-slices.VALUES + 1 :], None])  # the last come twice
    assert len(found) == slices.VALUES + bool(rest)
    if rest:
        assert found["by is another"].mask.nonzero()[0].tolist() == [1, 2]
        assert f"the other {rest} values of group by" in found["by is another"].told


def test_a_column_that_came_along_without_a_value_is_named():
    with pytest.raises(
        ParamsError, match=r"evaluation\.slices\.by: no test row has a value in column 'group by'"
    ):
        _by([None, None])


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("topic = 'x'", "columns: id, text, label, characters"),
        ("label =", "unable to parse"),
        ("read_csv('x')", "unsupported function"),
        ("sum(characters) > 3", "no single thing of each row"),
        ("label > 3", "cannot compare"),
    ],
)
def test_an_expression_that_says_nothing_of_the_rows_is_named_with_the_columns(expression, reason):
    with pytest.raises(ParamsError) as caught:
        _cut(mine=expression)
    assert f"evaluation.slices.mine: {expression!r}" in str(caught.value)
    assert reason in str(caught.value)
    assert "columns: id, text, label, characters" in str(caught.value)


def test_all_faults_are_told_at_once():
    rows = pl.DataFrame({"characters": range(30)})
    with pytest.raises(ParamsError) as caught:
        slices.cut(rows, (), {"a": "characters", "b": "nothing", "length 1 of 4": "characters > 3"})
    assert "'characters' has 30 values, more than 20" in str(caught.value)
    assert "evaluation.slices.b" in str(caught.value)
    assert "'length 1 of 4' is made twice" in str(caught.value)


def test_a_slice_is_not_called_what_the_ids_are_called():
    with pytest.raises(ParamsError, match=r"evaluation\.slices\.id: .*another name"):
        _cut(id="characters > 3")


@pytest.mark.parametrize(("groups", "enough"), [(9, False), (10, True)])
def test_a_slice_of_few_groups_of_near_duplicates_is_no_evidence(groups, enough):
    actual, answer = np.zeros(40, dtype=np.int64), np.tile(np.float32([0.7, 0.3]), (40, 1))
    sampling = Sampling(100, 0.95, 1, np.arange(40) % groups)
    whole = slices.Slice("all", "all rows", np.ones(40, dtype=bool))
    (found,) = slices.measure([whole], actual, answer, METRICS, sampling, smallest=20)
    assert (found.rows, bool(found.figures)) == (40, enough)


def test_slices_come_back_in_the_order_asked_for(tmp_path):
    path, ids = tmp_path / "slices.parquet", ROWS["id"].to_list()
    masks = {one.name: one.mask for one in _cut().values()}
    slices.write(path, ids, masks)
    assert {n: m.tolist() for n, m in slices.read(path, ids).items()} == {
        n: m.tolist() for n, m in masks.items()
    }
    turned = slices.read(path, ids[::-1])
    assert turned["label = bad"].tolist() == masks["label = bad"][::-1].tolist()


def test_the_same_slices_are_the_same_bytes(tmp_path):
    masks = {one.name: one.mask for one in _cut().values()}
    for name in ("a", "b"):
        slices.write(tmp_path / name, ROWS["id"].to_list(), masks)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_slices_of_other_rows_are_refused(tmp_path):
    slices.write(tmp_path / "slices.parquet", ["a"], {"x": np.array([True])})
    with pytest.raises(ArtifactError, match=r"lacks 1 of 2 rows \(first: b\)"):
        slices.read(tmp_path / "slices.parquet", ["a", "b"])
    with pytest.raises(ArtifactError, match="run `dvc repro evaluation` first"):
        slices.read(tmp_path / "none.parquet", ["a"])
