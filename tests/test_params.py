from pathlib import Path

import pytest

from tasks import params
from tasks.errors import ParamsError

TEXT = (Path(__file__).parents[1] / "params.yaml").read_text(encoding="utf-8")


def line(text: str) -> int:
    return TEXT[: TEXT.index(text)].count("\n") + 1


def test_dump_is_read_back_as_equal_params():
    shipped = params.parse(TEXT)
    assert params.parse(params.dump(shipped)) == shipped


def test_the_shipped_file_hides_no_default():
    """Every key that the schema knows stands in params.yaml, so that nobody must read code to find it."""
    import yaml

    written = dict(params._flat("", yaml.safe_load(TEXT)))
    known = dict(params._flat("", params.parse(TEXT).model_dump(mode="json")))
    absent = known.keys() - written.keys()
    assert all(name.startswith("finetuning.phases.") for name in absent)
    assert all(f" {name}" in TEXT for name in params.Phase.model_fields), "named in a comment at least"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "save_every:",
            "save_evry:",
            rf":{line('save_every:')}: unknown key 'finetuning.save_evry'; did you mean 'save_every'\?",
        ),
        ("alpha: 0.05", "alpha: 0.9", r"promotion.alpha: input should be less than 0.5, not 0.9"),
        (
            "depth: half",
            "depth: hal",
            r"finetuning.phases.1.depth: input should be 'half' or 'all', not 'hal'",
        ),
        ("name: upper", "name: head", r"finetuning: phase names must differ: head, head, whole"),
        ("test: 0.2}", "test: 0.95}", r"preparation.fractions: validation \+ test must stay below 1"),
        (
            "learning_rate: 1.0e-3",
            "learning_rate: 100",
            r"learning_rate: input should be less than or equal to 1",
        ),
        (
            "epochs: 10, learning",
            "epochs: 0, learning",
            r"phases.0.epochs: input should be greater than or equal to 1, not 0",
        ),
        (
            "epochs: 10, learning",
            "epochs: 10, steps: 5, learning",
            r"phases.0: phase head: name epochs or steps, not both",
        ),
        (
            "depth: half,",
            "depth: half, floors: [norm],",
            r"phases.1.floors.0: input should be 'embeddings', 'norms' or 'biases', not 'norm'",
        ),
        (
            "depth: half,",
            "dept: half,",
            r"unknown key 'finetuning.phases.1.dept'; did you mean 'depth'\?",
        ),
        ("evaluation:", "evaluatoin:", r"unknown key 'evaluatoin'; did you mean 'evaluation'\?"),
        ("batch_size: 32", "batch_size: many", r"finetuning.batch_size: .*, not 'many'"),
        (
            "verify: [content, load",
            "verify: [contents, x",
            rf":{line('verify:')}: conversion.verify: no level 'contents'; did you mean 'content'\?; no level 'x'; known: content",
        ),
        (
            "finetuning: null",
            "finetuning: gpu",
            r"operations.finetuning: string should match pattern .*, not 'gpu'",
        ),
        ("model: tweet-sentiment", "model: tweet sentiment", r"promotion.model: .*, not 'tweet sentiment'"),
        ("seed: 17", "seed: [", r"params.yaml is not YAML"),
    ],
)
def test_a_fault_is_a_sentence_with_its_line(old, new, message):
    with pytest.raises(ParamsError, match=message):
        params.parse(TEXT.replace(old, new, 1))


def test_where_stages_run_is_no_part_of_what_is_made():
    here = params.parse(TEXT)
    elsewhere = params.override(here, ["operations.finetuning=finetune/gpu", "operations.commit_lock=true"])
    assert here.contents() == elsewhere.contents() != params.override(here, ["finetuning.seed=2"]).contents()
    assert params.flatten(here) == params.flatten(elsewhere)


def test_all_faults_are_told_at_once():
    broken = TEXT.replace("alpha: 0.05", "alpha: 0.9").replace("save_every:", "save_evry:")
    with pytest.raises(ParamsError) as caught:
        params.parse(broken)
    assert len(str(caught.value).splitlines()) == 2


def test_a_rate_without_a_dot_is_a_number():
    """YAML 1.1 reads 1e-3 as a string; the schema does not."""
    assert params.override(params.parse(TEXT), ["finetuning.phases.0.learning_rate=1e-3"])


def test_the_sources_of_another_version_are_found():
    assert params.source_paths(TEXT) == [
        params.parse(TEXT).sources.text.path,
        params.parse(TEXT).sources.checkpoint.path,
    ]
    older = "sources: {text: {path: a.csv}, evaluations: [{path: b.csv}, {path: c.csv}]}\nunknown: 1\n"
    assert params.source_paths(older) == ["a.csv", "b.csv", "c.csv"]
    assert params.source_paths("") == []


def test_overrides_reach_into_lists_and_leave_the_rest():
    shipped = params.parse(TEXT)
    changed = params.override(shipped, ["finetuning.phases.2.epochs=3", "preparation.subset.train=null"])
    assert changed.finetuning.phases[2].epochs == 3
    assert changed.preparation.subset.train is None
    assert changed.sources == shipped.sources


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("finetuning.seed", "write section.key=value"),
        ("finetuning.seed=[1", "is not a YAML value"),
        ("finetunning.seed=2", "did you mean 'finetuning'"),
        ("finetuning.phases.9.epochs=1", "no '9' here; known: 0, 1, 2"),
        ("finetuning.seed.deeper=1", "no 'deeper' here|has no keys below it"),
    ],
)
def test_a_wrong_override_is_refused(assignment, message):
    with pytest.raises(ParamsError, match=message):
        params.override(params.parse(TEXT), [assignment])


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(ParamsError, match="brings the shipped one back"):
        params.load(tmp_path / "params.yaml")


def test_a_file_may_say_its_schema_and_that_of_another_regraft_is_refused():
    text = TEXT
    assert params.parse(f"schema: {params.SCHEMA}\n{text}") == params.parse(text)
    with pytest.raises(
        ParamsError, match=r"params\.yaml:1: schema 2: this regraft knows 1; install one that knows"
    ):
        params.parse(f"schema: 2\n{text}")


def test_a_device_that_evaluation_may_lack_is_refused_with_training_elsewhere():
    with pytest.raises(ParamsError, match="trains elsewhere, and evaluation is done here"):
        params.override(params.parse(TEXT), ["operations.finetuning=finetune/gpu", "finetuning.device=cuda"])
