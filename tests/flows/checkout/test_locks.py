"""A dvc.lock that was not written to its end stops nobody and forgets nothing."""

import pytest

from flows.checkout import locks

ENTRY = (
    "  {name}:\n    cmd: python -m tasks {name}\n    outs:\n    - path: data/{name}\n      md5: {digest}\n"
)
WHOLE = "schema: '2.0'\nstages:\n" + "".join(
    ENTRY.format(name=name, digest="1234abcd") for name in ("sources", "preparation")
)
TORN = [
    "",
    "schema: '2.0'\n",
    WHOLE[:-4],
    WHOLE[:-15],
    WHOLE[:30],
    WHOLE[: WHOLE.index("  preparation")],
    "a: 'b",
]


@pytest.fixture
def root(tmp_path):
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    (tmp_path / "dvc.lock").write_text(WHOLE)
    return tmp_path


def _copies(root):
    return list((root / ".dvc" / "tmp").iterdir())


@pytest.mark.parametrize("torn", TORN)
def test_what_a_failed_writing_left_is_as_it_was(root, torn):
    with pytest.raises(OSError, match="full"), locks.kept(root, "sources"):
        (root / "dvc.lock").write_text(torn)
        raise OSError("full")
    assert (root / "dvc.lock").read_text() == WHOLE
    assert _copies(root) == []


@pytest.mark.parametrize("torn", ["", WHOLE[: WHOLE.index(" -m")], "a: 'b"])
def test_what_a_killed_process_left_is_as_it_was(root, torn):
    killed = locks.kept(root, "sources")
    killed.__enter__()
    (root / "dvc.lock").write_text(torn)
    with locks.kept(root, "preparation"):
        assert (root / "dvc.lock").read_text() == WHOLE


def test_what_was_written_to_its_end_stays(root):
    changed = WHOLE.replace("1234abcd", "5678ef00", 1)
    with locks.kept(root, "sources"):
        (root / "dvc.lock").write_text(changed)
    assert (root / "dvc.lock").read_text() == changed
    with locks.kept(root, "sources"):
        (root / "dvc.lock").unlink()
    assert not (root / "dvc.lock").exists()
    assert _copies(root) == []


def test_what_a_person_took_from_git_meanwhile_stays(root):
    """A killed process left a copy, and the lock of another commit is there now."""
    killed = locks.kept(root, "sources")
    killed.__enter__()
    other = WHOLE.replace("1234abcd", "5678ef00")
    (root / "dvc.lock").write_text(other)
    with locks.kept(root, "sources"):
        assert (root / "dvc.lock").read_text() == other


def test_the_first_run_of_all_has_nothing_to_keep(tmp_path):
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    with locks.kept(tmp_path, "sources"):
        (tmp_path / "dvc.lock").write_text(WHOLE)
    assert (tmp_path / "dvc.lock").read_text() == WHOLE
