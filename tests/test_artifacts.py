import json

import pytest

from tasks import files
from tasks.artifacts import EncodedDataset, Sources, Vocabulary
from tasks.errors import ArtifactError


def _save(root, **changes):
    values = {"size": 5, "kept": 5, "fresh": 0, "special": {"pad": 0}} | changes
    with files.replace_directory(Vocabulary.folder(root)) as draft:
        (draft / "table").write_text("content")
        Vocabulary.save(draft, **values)
    return Vocabulary.load(root)


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record = _save(tmp_path)
    assert (record.size, record.special, record.path) == (5, {"pad": 0}, tmp_path / "data" / "vocabulary")


def test_the_digest_follows_fields_and_files(tmp_path):
    first = _save(tmp_path).digest
    assert _save(tmp_path).digest == first
    assert _save(tmp_path, size=6).digest != first


def test_lists_are_frozen(tmp_path):
    with files.replace_directory(EncodedDataset.folder(tmp_path)) as draft:
        EncodedDataset.save(
            draft,
            kind="label",
            labels=["a", "b"],
            max_length=8,
            rows={},
            tokens={},
            truncated={},
            lost={},
            unknown={},
        )
    assert EncodedDataset.load(tmp_path).labels == ("a", "b")


def test_a_missing_field_is_an_error_of_ours(tmp_path):
    with pytest.raises(TypeError, match="Sources takes"):
        Sources.save(tmp_path, text="sha256:0")


def test_a_missing_artifact_names_the_stage_to_run(tmp_path):
    with pytest.raises(ArtifactError, match="run `dvc repro vocabulary` first"):
        Vocabulary.load(tmp_path)


def test_another_kind_of_manifest_is_refused(tmp_path):
    _save(tmp_path)
    manifest = tmp_path / "data" / "vocabulary" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"record": "Sources"}))
    with pytest.raises(ArtifactError, match="is not a Vocabulary"):
        Vocabulary.load(tmp_path)


def test_figures_are_the_numbers_under_flat_names(tmp_path):
    assert _save(tmp_path).figures() == {"size": 5.0, "kept": 5.0, "fresh": 0.0, "special.pad": 0.0}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 2}, "its format is 2, not 1"),
        ({"format": None}, "its format is None, not 1"),
        ({"size": None}, "it lacks size"),
        ({"color": "red"}, "color is unknown"),
    ],
)
def test_an_artifact_of_another_version_is_refused_with_the_remedy(tmp_path, change, fault):
    path = _save(tmp_path).path / "manifest.json"
    manifest = {
        name: value for name, value in (json.loads(path.read_text()) | change).items() if value is not None
    }
    path.write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError) as caught:
        Vocabulary.load(tmp_path)
    assert f"of another version of regraft ({fault}): run `dvc repro -f vocabulary`, or use" in str(
        caught.value
    )
