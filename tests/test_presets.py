import re
from pathlib import Path

import pytest

from tasks import params
from tasks.params import FinetuningParams
from tasks.presets import DECIDED, PRESETS
from tasks.training.cautions import cautions
from tasks.training.forecast import Lengths, Outline, Schedule, Tensor

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _schedule(settings: FinetuningParams, layers: int) -> Schedule:
    names = ["embeddings", *(f"layer {number}" for number in range(layers)), "head"]
    outline = Outline({name: {"weight": Tensor((8, 8), "attention")} for name in names}, 8, 32, 2)
    return Schedule(outline, Lengths([9] * 400, [9] * 40), settings)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_section_that_gives_no_reason_for_caution(name):
    settings = FinetuningParams.model_validate(PRESETS[name].values)
    assert cautions(_schedule(settings, 6), free=2**40) == []


@pytest.mark.parametrize("layers", [2, 3, 6, 12, 24])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fits_any_depth_and_freezes_nothing_again(name, layers):
    settings = FinetuningParams.model_validate(PRESETS[name].values)
    schedule = _schedule(settings, layers)
    lowest = [schedule.lowest(phase) for phase in settings.phases]
    assert lowest == sorted(lowest, reverse=True)
    assert not [text for text in cautions(schedule, free=2**40) if "will fail" in text]


def test_a_preset_names_keys_of_the_section_and_its_source():
    assert set(DECIDED) <= FinetuningParams.model_fields.keys()
    assert all(preset.summary and preset.source for preset in PRESETS.values())


def test_the_readme_lists_the_presets_that_there_are():
    section = README.partition("## Choose how to fine-tune")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", section, flags=re.M) == list(PRESETS)


def test_the_shipped_schedule_gives_no_reason_for_caution():
    shipped = params.load(REPOSITORY / "params.yaml").finetuning
    assert cautions(_schedule(shipped, 6), free=2**40) == []
