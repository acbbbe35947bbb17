"""States that are kept: what comes back, what is refused, what is thrown away."""

import errno
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tasks.errors import TrainingError
from tasks.model import boundary
from tasks.model.boundary import Wanted

LENGTHS = [3, 1, 4, 2]


def _wanted(dtype="float32", lengths=LENGTHS, **depends):
    return Wanted(lengths, 5, dtype, {"weights": "w", **depends})


def _values():
    chance = torch.Generator().manual_seed(2)
    return [torch.randn(length, 5, generator=chance) for length in LENGTHS]


def _compute(values, calls=None):
    def states(names):
        if calls is not None:
            calls.append(list(names))
        for rows in ([2, 0], [3, 1]):
            padded = nn.utils.rnn.pad_sequence(
                [values[row] for row in rows], batch_first=True, padding_value=9
            )
            yield rows, dict.fromkeys(names, padded)

    return states


def _gather(home, wanted, values=None, calls=None):
    return boundary.gather(home, {"layer 2": wanted}, _compute(values or _values(), calls))["layer 2"]


def test_rows_come_back_in_any_batch_with_zeros_behind_their_ends(tmp_path):
    values = _values()
    hidden, mask = _gather(tmp_path, _wanted()).batch([1, 2, 0])
    assert hidden.shape == (3, 4, 5)
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert torch.equal(hidden[1], values[2])
    assert torch.equal(hidden[2, :3], values[0])
    assert not hidden[0, 1:].any()


def test_features_of_one_token_a_row_come_back_in_any_order(tmp_path):
    values = [torch.full((1, 5), float(row)) for row in range(4)]
    hidden, mask = _gather(tmp_path, _wanted(lengths=[1] * 4), values).batch([2, 0, 2])
    assert hidden[:, 0, 0].tolist() == [2.0, 0.0, 2.0]
    assert (hidden.shape, mask.tolist()) == ((3, 1, 5), [[1], [1], [1]])


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("int8", 2e-2)])
def test_smaller_numbers_come_back_nearly(tmp_path, dtype, error):
    hidden, _ = _gather(tmp_path, _wanted(dtype)).batch([2])
    largest = _values()[2].abs().max()
    assert 0 < float((hidden[0] - _values()[2]).abs().max()) < error * largest


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_size_that_is_told_is_the_size_on_disk(tmp_path, dtype):
    wanted = _wanted(dtype)
    _gather(tmp_path, wanted)
    arrays = sum(np.load(path).nbytes for path in wanted.folder(tmp_path).glob("*.npy"))
    assert arrays == wanted.nbytes


def test_states_are_computed_once(tmp_path):
    calls = []
    for _ in range(2):
        _gather(tmp_path, _wanted(), calls=calls)
    assert calls == [["layer 2"]]


@pytest.mark.parametrize("other", [{"weights": "v"}, {"rows": "r"}, {"dtype": "float16"}])
def test_states_of_something_else_are_not_found(tmp_path, other):
    calls = []
    _gather(tmp_path, _wanted(), calls=calls)
    _gather(tmp_path, _wanted(**other), calls=calls)
    assert len(calls) == 2


def test_states_that_were_moved_to_another_name_are_refused(tmp_path):
    ours, theirs = _wanted(), _wanted(weights="v")
    _gather(tmp_path, ours)
    shutil.move(ours.folder(tmp_path), theirs.folder(tmp_path))
    with pytest.raises(TrainingError, match="holds hidden states of another model or other rows: remove it"):
        _gather(tmp_path, theirs)


def test_an_interrupted_pass_leaves_nothing_that_is_taken_for_whole(tmp_path):
    def breaks(names):
        yield from list(_compute(_values())(names))[:1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        boundary.gather(tmp_path, {"layer 2": _wanted()}, breaks)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_state_too_large_for_its_dtype_is_told_with_the_remedy(tmp_path):
    values = _values()
    values[3][0, 0] = 1e6
    with pytest.raises(
        TrainingError, match=r"1e\+06 is too large for float16: set finetuning\.cache\.dtype to"
    ):
        _gather(tmp_path, _wanted("float16"), values)
    _gather(tmp_path, _wanted("float32"), values)


def test_a_disk_that_is_too_small_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    calls = []
    with pytest.raises(TrainingError, match=r"has 0 MB free: make room, or set finetuning\.cache"):
        _gather(tmp_path, _wanted(), calls=calls)
    assert calls == []


def test_a_folder_that_cannot_be_written_is_told_with_the_remedy(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    with pytest.raises(
        TrainingError, match=r"cannot be kept there \(Read-only file system\): make room, or set"
    ):
        _gather(tmp_path, _wanted())


def test_what_was_used_longest_ago_goes_first_and_what_is_in_use_stays(tmp_path):
    wanted = [_wanted(rows=str(number)) for number in range(3)]
    for age, one in enumerate(wanted):
        _gather(tmp_path, one)
        os.utime(one.folder(tmp_path), (age, age))
    size = sum(file.stat().st_size for file in wanted[0].folder(tmp_path).iterdir())
    boundary.prune(tmp_path, maximum=2 * size, keep=[wanted[0].folder(tmp_path)])
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        one.folder(tmp_path).name for one in (wanted[0], wanted[2])
    }
    boundary.prune(tmp_path, maximum=0, keep=[wanted[0].folder(tmp_path)])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [wanted[0].folder(tmp_path).name]


def test_one_changed_weight_is_another_digest():
    layer = nn.Linear(3, 2)
    before = boundary.weights_digest(dict(layer.named_parameters()))
    assert boundary.weights_digest(dict(layer.named_parameters())) == before
    with torch.no_grad():
        layer.bias[0] += 1e-6
    assert boundary.weights_digest(dict(layer.named_parameters())) != before


def test_what_the_states_depend_on_can_be_read_beside_them(tmp_path):
    wanted = _wanted(rows="r")
    _gather(tmp_path, wanted)
    assert json.loads((wanted.folder(tmp_path) / "manifest.json").read_text()) == {
        "rows": "r",
        "weights": "w",
    }


def test_two_that_want_the_same_states_at_once_compute_them_once(tmp_path):
    begun, go = threading.Event(), threading.Event()
    calls = []

    def slow(names):
        for batch in _compute(_values(), calls)(names):
            yield batch
            begun.set()
            go.wait(10)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(boundary.gather, tmp_path, {"layer 2": _wanted()}, slow)
        begun.wait(10)
        second = pool.submit(_gather, tmp_path, _wanted(), None, calls)
        boundary.prune(tmp_path, maximum=0, keep=[])  # leaves alone what is being filled
        go.set()
        one, other = first.result()["layer 2"], second.result()
    assert len(calls) == 1
    assert all(torch.equal(one.batch([row])[0][0], _values()[row]) for row in range(4))
    assert np.array_equal(one.states, other.states)


def test_a_draft_that_a_killed_process_left_goes_with_the_next_pruning(tmp_path):
    draft = tmp_path / ".0123456789abcdef.draft"
    draft.mkdir()
    (draft / "states.npy").write_bytes(b"half")
    _gather(tmp_path, _wanted())
    boundary.prune(tmp_path, maximum=10**9, keep=[])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [_wanted().folder(tmp_path).name]


def test_old_states_make_room_before_new_ones_are_computed(tmp_path):
    old = _wanted(rows="old")
    _gather(tmp_path, old)
    boundary.gather(tmp_path, {"layer 2": _wanted()}, _compute(_values()), maximum=_wanted().nbytes + 200)
    assert not old.folder(tmp_path).exists()
    assert _wanted().folder(tmp_path).exists()


def test_a_disk_that_has_no_room_is_told_before_it_is_written_to(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        TrainingError, match=r"cannot be kept there \(No space left on device\): make room, or set"
    ):
        _gather(tmp_path, _wanted())
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
