from pathlib import Path

import pytest

from flows.commands import begin
from tasks import params
from tasks.errors import InputError, ParamsError, SourceError
from tasks.presets import PRESETS

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path):
    settings = params.parse((REPOSITORY / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(params.dump(settings))
    return tmp_path


def test_init_writes_the_columns_that_differ(root):
    rows = (f"{n},{'spam' if n % 3 else 'ham'},message number {n} here\n" for n in range(30))
    (root / "mail.csv").write_text("id,kind,message\n" + "".join(rows))
    former = params.load(root / "params.yaml")
    told = list(begin.write(root, Path("mail.csv"), checkpoint=None, text=None, label=None, force=False))
    text = params.load(root / "params.yaml").sources.text
    assert text == params.TextSource(path="mail.csv", columns={"text": "message", "label": "kind"})
    assert params.load(root / "params.yaml").finetuning == former.finetuning
    assert told[0].startswith("text column: message")
    with pytest.raises(ParamsError, match=r"already reads mail\.csv: --force"):
        list(begin.write(root, Path("mail.csv"), checkpoint=None, text=None, label=None, force=False))


def test_init_notes_an_encoding_that_is_not_utf_8(root):
    (root / "a.csv").write_bytes("text,label\nété à la plage,a\nhiver,b\n".encode("utf-16"))
    told = list(begin.write(root, Path("a.csv"), checkpoint=None, text=None, label=None, force=False))
    text = params.load(root / "params.yaml").sources.text
    assert (text.columns, text.encoding) == ({}, "utf-16")
    assert "encoding: utf-16 (by the first bytes)" in told


def _begin(root, data=None, **options):
    defaults = {"checkpoint": None, "text": None, "label": None, "force": False}
    return list(begin.write(root, data, **{**defaults, **options}))


@pytest.fixture
def shipped(tmp_path):
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_without_a_table_and_changes_fine_tuning_alone(shipped, name):
    former, text = params.load(shipped / "params.yaml"), (shipped / "params.yaml").read_text()
    told = _begin(shipped, preset=name)
    found = params.load(shipped / "params.yaml")
    assert found.model_copy(update={"finetuning": former.finetuning}) == former
    assert [phase.name for phase in found.finetuning.phases] == [
        phase["name"] for phase in PRESETS[name].values["phases"]
    ]
    written = (shipped / "params.yaml").read_text()
    assert f"phases:  # preset {name}: {PRESETS[name].source}\n" in written
    assert written.partition("finetuning:")[0] == text.partition("finetuning:")[0]
    assert written.partition("\nevaluation:")[2] == text.partition("\nevaluation:")[2]
    assert len(told) == 2 + len(found.finetuning.phases)
    assert "`regraft plan`" in told[-1]


def test_the_next_preset_leaves_nothing_of_the_former(shipped):
    text = (shipped / "params.yaml").read_text()
    _begin(shipped, preset="lora")
    _begin(shipped, preset="full")
    after_two = params.load(shipped / "params.yaml")
    (shipped / "params.yaml").write_text(text)
    _begin(shipped, preset="full")
    assert after_two == params.load(shipped / "params.yaml")


def test_a_preset_keeps_what_presets_do_not_decide(shipped):
    text = (shipped / "params.yaml").read_text().replace("batch_size: 32", "batch_size: 7  # mine")
    (shipped / "params.yaml").write_text(text)
    _begin(shipped, preset="gradual")
    assert "  batch_size: 7  # mine\n" in (shipped / "params.yaml").read_text()


def test_a_table_and_a_preset_go_together_and_comments_stay(shipped):
    (shipped / "a.csv").write_text("text,label\nhello there,x\nwell now,y\n")
    _begin(shipped, Path("a.csv"), preset="freeze-early")
    found = params.load(shipped / "params.yaml")
    assert found.sources.text == params.TextSource(path="a.csv")
    assert [phase.depth for phase in found.finetuning.phases] == [0, "half"]
    assert "  separator: null  # between the labels" in (shipped / "params.yaml").read_text().replace(
        "    ", "  "
    )


def test_an_unknown_preset_is_refused_with_the_nearest(shipped):
    before = (shipped / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=r"no preset 'gradul'; did you mean 'gradual'\?"):
        _begin(shipped, preset="gradul")
    with pytest.raises(ParamsError, match="no preset 'xyz'; known: cpu-smoke, feature-extraction"):
        _begin(shipped, preset="xyz")
    assert (shipped / "params.yaml").read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"preset": "full", "checkpoint": "mine"}, {"text": "body"}])
def test_only_a_preset_goes_without_a_table(shipped, options):
    with pytest.raises(InputError, match="only --preset and -S go without one"):
        _begin(shipped, **options)


def test_rows_of_another_kind_have_that_kinds_columns_or_those_that_are_said(shipped):
    (shipped / "talk.jsonl").write_text('{"prompt": "hello there", "reply": "hello"}\n' * 3)
    told = _begin(shipped, Path("talk.jsonl"), kind="completion", columns={"completion": "reply"})
    text = params.load(shipped / "params.yaml").sources.text
    assert (text.kind, text.columns) == ("completion", {"completion": "reply"})
    assert told[:2] == ["prompt column: prompt (by its name)", "completion column: reply (by its name)"]


def test_all_columns_that_a_kind_lacks_are_named_at_once(shipped):
    (shipped / "talk.csv").write_text("question,reply,lable\na,b,c\n")
    before = (shipped / "params.yaml").read_bytes()
    with pytest.raises(SourceError) as told:
        _begin(shipped, Path("talk.csv"), kind="pair", columns={"test": "question"})
    for part in ("no 'test' in such rows; did you mean 'text'?", "no column 'text'", "no column 'pair'",
                 "no column 'label' for 'label'; did you mean 'lable'?", "--column text=NAME"):  # fmt: skip
        assert part in str(told.value)
    assert (shipped / "params.yaml").read_bytes() == before


def test_an_unknown_kind_is_refused_with_the_nearest(shipped):
    (shipped / "a.csv").write_text("text,label\nhello there,x\n")
    with pytest.raises(InputError, match=r"no kind of row 'lables'; did you mean 'labels'\?"):
        _begin(shipped, Path("a.csv"), kind="lables")


@pytest.mark.parametrize("preset", [None, "gradual", "lora"])
def test_a_language_model_gets_no_phase_of_its_head_alone(shipped, preset):
    (shipped / "talk.csv").write_text("prompt,completion\na,b\n")
    _begin(shipped, Path("talk.csv"), kind="completion", preset=preset)
    depths = [phase.depth for phase in params.load(shipped / "params.yaml").finetuning.phases]
    assert depths
    assert 0 not in depths


def test_a_preset_that_trains_a_head_alone_is_refused_for_a_language_model(shipped):
    (shipped / "talk.csv").write_text("prompt,completion\na,b\n")
    before = (shipped / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=r"every phase trains a new head alone.*such as lora or full"):
        _begin(shipped, Path("talk.csv"), kind="completion", preset="feature-extraction")
    assert (shipped / "params.yaml").read_bytes() == before
