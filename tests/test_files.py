import errno
import os
import subprocess
from pathlib import Path

import pytest

from tasks import files


def test_a_directory_is_replaced_whole(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with files.replace_directory(target) as draft:
        (draft / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("accident", [ValueError, KeyboardInterrupt])
def test_an_accident_leaves_what_was_there(tmp_path, accident):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(accident), files.replace_directory(target) as draft:
        (draft / "half").write_text("half")
        raise accident
    assert (target / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_accident_removes_the_directories_that_were_made_and_are_empty(tmp_path):
    (tmp_path / "there").mkdir()
    with (
        pytest.raises(ValueError, match="stop"),
        files.replace_directory(tmp_path / "there" / "a" / "b" / "out"),
    ):
        raise ValueError("stop")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    with pytest.raises(ValueError, match="stop"), files.replace_directory(tmp_path / "a" / "b" / "out"):
        (tmp_path / "a" / "other").write_text("of somebody else")
        raise ValueError("stop")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"other"}


def test_a_draft_left_by_a_killed_process_is_not_mixed_in(tmp_path):
    left = tmp_path / ".out.draft"
    left.mkdir()
    (left / "stale").write_text("stale")
    with files.replace_directory(tmp_path / "out") as draft:
        (draft / "fresh").write_text("fresh")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fresh"]


def test_a_file_is_replaced_whole(tmp_path):
    files.write_text(tmp_path / "page", "one")
    with pytest.raises(ValueError, match="stop"), files.replace_file(tmp_path / "page") as draft:
        draft.write_text("half")
        raise ValueError("stop")
    assert (tmp_path / "page").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs privileges")
    try:
        files.write_text(disk / "page", "whole")
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            files.write_text(disk / "page", "x" * 200_000)
        assert [path.name for path in disk.iterdir()] == ["page"]
        assert (disk / "page").read_text() == "whole"
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_tree_digest_sees_names_and_contents_but_not_order(tmp_path):
    def tree(name: str, contents: dict[str, str]) -> str:
        for path, text in contents.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return files.digest_tree(Path(tmp_path / name))

    first = tree("a", {"x": "1", "sub/y": "2"})
    assert first == tree("b", {"sub/y": "2", "x": "1"})
    assert first != tree("c", {"x": "1", "sub/z": "2"})
    assert first != tree("d", {"x": "1", "sub/y": "3"})


def test_json_with_a_nan_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"loss": float("nan")})


def test_a_link_is_whole_and_keeps_what_was_there_when_its_source_is_replaced(tmp_path):
    source, target = tmp_path / "best", tmp_path / "point"
    source.write_text("one")
    target.write_text("zero")
    files.link(source, target)
    assert target.read_text() == "one"
    files.write_text(source, "two")
    assert (source.read_text(), target.read_text()) == ("two", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "point"]


def test_where_the_disk_has_no_second_names_a_link_is_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    (tmp_path / "best").write_text("one")
    files.link(tmp_path / "best", tmp_path / "point")
    assert (tmp_path / "point").read_text() == "one"


def test_what_the_disk_could_not_take_in_meanwhile_is_told_at_the_end(tmp_path, monkeypatch):
    def failing(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "one").write_text("1")
    monkeypatch.setattr(os, "fsync", failing)
    reached = False
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), files.synced([tmp_path / "one"]):
        reached = True
    assert reached
