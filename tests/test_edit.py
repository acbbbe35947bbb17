import difflib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import edit, params
from tasks.errors import ParamsError
from tasks.params import Phase

TEXT = (Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8")
ONE = (Phase(name="head", depth=0, learning_rate=1e-3),)
ASSIGNMENTS = [
    "finetuning.seed=7",
    "finetuning.cache.dtype=int8",
    "preparation.subset=null",
    "preparation.subset.train=null",
    "preparation.languages=[en, 'a, b']",
    "sources.text.columns={text: body, label: 'is: it'}",
    "sources.text.id=number",
    "sources.text.separator=', '",
    "sources.checkpoint.path='{odd}, #name'",
    "finetuning.phases=[{name: whole, depth: all, learning_rate: 1.0e-5}]",
    "finetuning.adapter={kind: lora}",
    "promotion.model=mail",
]


def _phases(settings, phases):
    tuned = settings.finetuning.model_copy(update={"phases": phases})
    return settings.model_copy(update={"finetuning": tuned})


def _changed(before, after):
    """Lines that left, and lines that came."""
    lines = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]
    return [[line[2:] for line in lines if line[0] == sign] for sign in "-+"]


def test_nothing_changes_where_nothing_differs():
    assert edit.rewrite(TEXT, params.parse(TEXT)) == TEXT


@given(st.lists(st.sampled_from(ASSIGNMENTS[:2] + ASSIGNMENTS[3:]), unique=True))
def test_any_changes_are_read_back_and_the_comments_stay(assignments):
    wanted = params.override(params.parse(TEXT), assignments)
    result = edit.rewrite(TEXT, wanted)
    assert params.parse(result) == wanted
    gone, _ = _changed(TEXT, result)
    keys = [assignment.partition("=")[0].split(".")[-1] for assignment in assignments]
    assert len(gone) <= len(assignments) + 2 * ("phases" in keys)
    comments = {line.partition("#")[2] for line in TEXT.splitlines() if "#" in line}
    assert comments - {line.partition("#")[2] for line in result.splitlines()} <= {"phases"}


def test_one_value_changes_one_line_and_its_comment_stays():
    wanted = params.override(params.parse(TEXT), ["finetuning.optimizer=sgd"])
    assert _changed(TEXT, edit.rewrite(TEXT, wanted)) == [
        ["  optimizer: adamw  # or adam, sgd"],
        ["  optimizer: sgd  # or adam, sgd"],
    ]


def test_phases_take_a_line_each_and_what_follows_them_stays():
    text = TEXT.replace("\nevaluation:", "\n# a remark of mine\n\nevaluation:")
    wanted = _phases(params.parse(text), ONE)
    result = edit.rewrite(text, wanted, comments={"finetuning.phases": "head alone"})
    assert "  phases:  # head alone\n    - {name: head, depth: 0, learning_rate: 0.001}\n" in result
    assert "# a remark of mine\n\nevaluation:" in result


def test_the_ends_of_lines_stay_what_they_are():
    text = TEXT.replace("\n", "\r\n")
    result = edit.rewrite(text, _phases(params.parse(text), ONE))
    assert result.count("\n") == result.count("\r\n")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  label_smoothing: 0.0\n", ""),  # a key that is not there
        ("cache: {dtype: float16, ", "cache: {"),
        ("  cache: {dtype: float16, maximum_bytes: 8589934592}", "  cache: {}"),
    ],
)
def test_a_key_that_is_not_there_is_added(old, new):
    assert old in TEXT
    text = TEXT.replace(old, new)
    wanted = params.override(
        params.parse(text), ["finetuning.label_smoothing=0.1", "finetuning.cache.dtype=int8"]
    )
    assert params.parse(edit.rewrite(text, wanted)) == wanted


def test_a_file_that_was_written_by_dump_can_be_changed():
    text = params.dump(params.parse(TEXT))
    wanted = params.override(
        _phases(params.parse(text), ONE), ["sources.text.columns={}", "preparation.subset.train=7"]
    )
    assert params.parse(edit.rewrite(text, wanted)) == wanted


def test_a_value_that_serves_two_keys_is_not_changed_under_the_other():
    text = TEXT.replace("id: null", "id: &none null").replace("split: null", "split: *none")
    wanted = params.override(params.parse(text), ["sources.text.id=number"])
    with pytest.raises(ParamsError, match=r"sources\.text\.id cannot be changed in place: give every key"):
        edit.rewrite(text, wanted)


FORMER = Path(__file__).parent / "former"  # params.yaml of four revisions of this project


@pytest.mark.parametrize("path", sorted(FORMER.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_former_file_is_refused_with_the_remedy_and_migrated_with_its_comments(path):
    text = path.read_text(encoding="utf-8")
    with pytest.raises(
        ParamsError, match=r"promotion\.must_beat is called promotion\.gate\.must_beat today: `regr"
    ):
        params.parse(text)
    new, renamed = edit.migrate(text)
    found = params.parse(new)
    assert found.sources.text.columns == {"text": "text", "label": "sentiment"}
    assert found.promotion.gate.must_beat in ("auto", ("majority", "tfidf", "frozen"))
    assert found.preparation.max_quarantine_fraction == 0.1
    gone, came = _changed(text, new)
    assert [line.split(":")[0].strip() for line in gone] == [
        key.rpartition(".")[2] for key in params.FORMER if key in renamed
    ]
    assert len(came) == len(gone) + len(
        {now.rpartition(".")[0] for now in renamed.values()} - {"preparation"}
    )
    assert [line.partition("#")[2] for line in gone] == [
        line.partition("#")[2] for line in came if not line.endswith(":")
    ]
    assert edit.migrate(new) == (new, {})


def test_former_names_move_below_a_parent_that_is_there_and_line_ends_stay():
    text = TEXT.replace("  move_alias: true\n", "  must_beat: [majority]  # mine").replace("\n", "\r\n")
    text = text.replace("    must_beat: auto", "    # must_beat: auto")
    new, renamed = edit.migrate(text)
    assert renamed == {"promotion.must_beat": "promotion.gate.must_beat"}
    assert "    must_beat: [majority]  # mine\r\n" in new
    assert params.parse(new).promotion.gate.must_beat == ("majority",)
    assert new.count("\n") == new.count("\r\n")


def test_a_comment_above_a_key_goes_with_it():
    text = TEXT.replace("  move_alias: true\n", "  # two lines\n  # of mine\n  must_beat: [majority]\n")
    text = text.replace("    must_beat: auto", "    # must_beat: auto")
    new, _ = edit.migrate(text)
    assert "gate:  #" in new or "gate:\n" in new
    assert "    # two lines\n    # of mine\n    must_beat: [majority]\n" in new
    assert params.parse(new).promotion.gate.must_beat == ("majority",)


def test_what_cannot_be_moved_in_place_is_left_to_a_person():
    text = f"{TEXT[: TEXT.index('promotion:')]}promotion: {{model: mine, must_beat: [majority]}}\n"
    with pytest.raises(
        ParamsError, match=r"must_beat cannot be moved in place: write promotion\.gate\.must_beat"
    ):
        edit.migrate(text)


def test_a_migrated_file_with_other_faults_is_refused():
    text = (FORMER / "params-b784300.yaml").read_text().replace("save_every", "save_evry")
    with pytest.raises(ParamsError, match="did you mean 'save_every'"):
        edit.migrate(text)
