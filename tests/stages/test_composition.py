"""An adapter that is composed of several projects' is a source like theirs."""

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from flows.commands import serving as commands
from tasks import files, params
from tasks.artifacts import ConvertedCheckpoint, EncodedDataset, TrainedModel, Vocabulary
from tasks.errors import ArtifactError, InputError, TrainingError
from tasks.model import adapters, floors
from tasks.serving.messages import Row
from tasks.stages import composition
from tasks.stages.composition import RECIPE, Recipe
from tasks.stages.serving import ADAPTERS, Service

MOODS = ("bad", "fair", "good")
TEXT = "another book by Alice"


@pytest.fixture
def two(project):
    """The roots of two projects with the same labels, of which one is often unsure what to say."""
    return [
        project(name, seed=seed, labels=MOODS, decision=decision)[0]
        for name, seed, decision in (("one", 1, {"temperature": 2.5, "abstain_below": 0.999}), ("two", 2, {}))
    ]


def _recipe(roots, weights=(1.0, 0.5), by="cat", **more):
    return Recipe({str(root): weight for root, weight in zip(roots, weights, strict=True)}, by, **more)


def _ask(service, name, text=TEXT):
    prepared = service.prepare([Row(text=text, adapter=name)])
    (found,) = service.answer(prepared)
    service.release(prepared)
    return found


def _expected(base, folder, text=TEXT):
    """Probabilities of a model of its own with the adapter in it."""
    model = floors.load(ConvertedCheckpoint.load(base).path / "model")
    adapters.load(model, folder, base="sha256:1")
    tokenizer = AutoTokenizer.from_pretrained(Vocabulary.load(base).path / "tokenizer")
    given = tokenizer([text], return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        return model(**given).logits[0].softmax(-1)


@pytest.mark.parametrize("by", ["cat", "dare_ties"])
def test_it_is_served_and_bundled_as_its_parts_are(base, two, tmp_path, by):
    made = composition.compose(_recipe(two, by=by), base, tmp_path / "both")
    assert made.labels == MOODS
    service = Service(base)
    told = service.load("both", str(tmp_path / "both"))
    assert (told.labels, told.kind, told.version) == (list(MOODS), "label", None)
    found = _ask(service, "both")
    expected = _expected(base, tmp_path / "both" / "adapter")
    np.testing.assert_allclose(list(found.probabilities.values()), expected, atol=1e-6)
    assert found.prediction == MOODS[int(expected.argmax())], "what its parts abstain from, it answers"
    service.load("one", str(two[0]))
    assert _ask(service, "one").prediction is None
    service.pack(tmp_path / "packed")
    packed = Service(tmp_path / "packed")
    packed.load("both", str(tmp_path / "packed" / ADAPTERS / "both"))
    assert _ask(packed, "both") == found


def test_a_row_is_cut_at_the_longest_length_of_a_part(base, two, tmp_path):
    path = EncodedDataset.folder(two[1]) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 12}))
    composition.compose(_recipe(two), base, tmp_path / "both")
    service = Service(base)
    service.load("both", str(tmp_path / "both"))
    (row,) = service.prepare([Row(text="and " * 40, adapter="both")])
    assert len(row.ids) == 12


def test_what_it_is_made_of_stands_beside_it(base, two, tmp_path):
    composition.compose(_recipe(two, by="dare_linear", density=0.3, seed=4), base, tmp_path / "both")
    told = json.loads((tmp_path / "both" / RECIPE).read_text())
    parts = told.pop("parts")
    assert told == {"by": "dare_linear", "density": 0.3, "seed": 4}
    assert [(one["source"], one["weight"]) for one in parts] == [(str(two[0]), 1.0), (str(two[1]), 0.5)]
    for one, root in zip(parts, two, strict=True):
        assert one["digest"] == files.digest_tree(TrainedModel.folder(root) / "adapter")


def test_density_and_seed_are_what_it_is_composed_with(base, two, tmp_path):
    made, again, other = (
        _values(
            composition.compose(_recipe(two, by="dare_linear", density=0.3, seed=seed), base, tmp_path / name)
        )
        for name, seed in (("made", 4), ("again", 4), ("other", 5))
    )
    assert torch.equal(made, again)
    assert not torch.equal(made, other)
    assert (made != 0).float().mean() == pytest.approx(1 - 0.7**2, abs=0.1), "of one or the other"


def _values(made):
    return torch.cat([made.tensors[name].flatten() for name in sorted(made.tensors) if "lora_" in name])


def test_a_composed_one_is_composed_again(base, two, project, tmp_path):
    composition.compose(_recipe(two), base, tmp_path / "both")
    third = project("three", seed=3, labels=MOODS)[0]
    made = composition.compose(_recipe([tmp_path / "both", third]), base, tmp_path / "all")
    assert made.adapter.rank == 6


def test_registered_versions_are_taken(base, two, register, tmp_path):
    register("tweets", two[0])
    recipe = Recipe({"models:/tweets@champion": 1.0, str(two[1]): 1.0}, "cat")
    two_ways = [tmp_path / "by alias", tmp_path / "by root"]
    with pytest.raises(InputError, match=r"texts cleaned by \('whitespace',\) \(models:/tweets@champion\), "):
        composition.compose(recipe, base, two_ways[0])
    _cleaned_by_whitespace(two)
    composition.compose(recipe, base, two_ways[0])
    composition.compose(_recipe(two, (1.0, 1.0)), base, two_ways[1])
    assert len({files.digest_tree(path / "adapter") for path in two_ways}) == 1
    assert json.loads((two_ways[0] / RECIPE).read_text())["parts"][0]["version"] == "1"


def _cleaned_by_whitespace(roots):
    for root in roots:
        own = params.load(root / "params.yaml")
        (root / "params.yaml").write_text(
            params.dump(params.override(own, ["preparation.clean=[whitespace]"]))
        )


@pytest.mark.parametrize(
    ("fault", "error", "told"),
    [
        ("tokenizer", InputError, "its tokenizer is not the base's"),
        (
            "kind",
            InputError,
            r"rows of kind label \(.*one\), labels \(.*two\): compose those that take a text",
        ),
        ("clean", InputError, r"texts cleaned by \(.*\) \(.*one\), \('whitespace',\) \(.*two\)"),
        ("labels", InputError, "let them answer side by side, by `regraft serve NAME=SOURCE NAME=SOURCE`"),
        (
            "said",
            InputError,
            "it is said to answer bad, good, and its adapter's head answers bad, fair, good",
        ),
        ("body", InputError, "compose it with others of its own base"),
        ("torn", TrainingError, "two does not fit the model: .*lora_A"),
        ("nothing", ArtifactError, "data/finetuning"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_left(
    base, two, project, tmp_path, fault, error, told
):
    other = two[1]
    if fault in ("kind", "labels"):
        shutil.rmtree(other)
        labels = MOODS if fault == "kind" else MOODS[::-1]
        project("two", labels=labels, kind="labels" if fault == "kind" else "label")
    _break(other, fault)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=told):
        composition.compose(_recipe(two), base, tmp_path / "both")
    assert sorted(tmp_path.iterdir()) == before


def _break(root, fault):
    folder = TrainedModel.folder(root) / "adapter"
    if fault == "tokenizer":
        path = Vocabulary.folder(root) / "tokenizer" / "tokenizer.json"
        path.write_text(path.read_text().replace('"[UNK]"', '"[unk]"'))
    if fault == "clean":
        _cleaned_by_whitespace([root])
    if fault == "said":
        path = TrainedModel.folder(root) / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["bad", "good"]}))
    if fault == "body":
        path = folder / adapters.DESCRIPTION
        path.write_text(json.dumps(json.loads(path.read_text()) | {"body": "sha256:other"}))
    if fault == "torn":
        tensors = load_file(folder / adapters.WEIGHTS)
        name = next(name for name in tensors if "lora_A" in name)
        save_file({key: value for key, value in tensors.items() if key != name}, folder / adapters.WEIGHTS)
    if fault == "nothing":
        shutil.rmtree(TrainedModel.folder(root))


def test_what_is_there_already_stays(base, two, tmp_path):
    target = tmp_path / "both"
    files.write_text(target / "mine", "mine")
    with pytest.raises(InputError, match="both exists: compose into a directory that does not, or remove it"):
        composition.compose(_recipe(two), base, target)
    assert [path.name for path in target.iterdir()] == ["mine"]


def test_a_disk_that_is_full_leaves_nothing(base, two, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    recipe, target = _recipe(two), tmp_path / "deep" / "both"
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))
    try:
        with pytest.raises(Exception, match="File too large"):
            composition.compose(recipe, base, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not target.parent.exists()


def test_the_command_tells_what_it_made_and_how_to_ask_it(base, two, tmp_path):
    told = []
    recipe = Recipe(commands.weighed([f"{two[0]}=1", f"{two[1]}=0.5"]), "cat")
    target = tmp_path / "both moods"
    commands.compose(base, recipe, target, told.append)
    assert told == [
        f"{target}: 1 of {two[0]}, 0.5 of {two[1]}, by cat: rank 4, bad, fair, good",
        f"no gate has judged it; `regraft serve NAME='{target}'` answers by it",
    ]
    assert Service(base).load("both", str(target)).labels == list(MOODS)
