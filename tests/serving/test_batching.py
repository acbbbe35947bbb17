"""Many callers, one model: batches gather while it works, and nobody's answer goes to another."""

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from tasks.serving.batching import Batcher, Busy


class Model:
    """Doubles; while `closed` it is at work on the batch that it was given first."""

    def __init__(self):
        self.batches, self.free, self.begun = [], threading.Event(), threading.Event()
        self.free.set()

    def __call__(self, rows):
        self.batches.append(list(rows))
        self.begun.set()
        assert self.free.wait(10)
        return [ValueError(row) if row < 0 else 2 * row for row in rows]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def batcher(model):
    made = Batcher(model, rows=4, waiting=10)
    yield made
    model.free.set()
    made.close()


def _at_work(batcher, model, row=0):
    """The model is busy with this row when it returns."""
    model.free.clear()
    (first,) = batcher.submit([row])
    assert model.begun.wait(10)
    return first


def test_every_caller_gets_its_own_answers(batcher):
    with ThreadPoolExecutor(8) as pool:
        asked = [[number, number + 1, number + 2] for number in range(50)]
        found = pool.map(lambda rows: _patiently(batcher, rows), asked)
        assert list(found) == [[2 * row for row in rows] for rows in asked]


def _patiently(batcher, rows):
    while True:
        try:
            return [future.result(10) for future in batcher.submit(rows)]
        except Busy:
            threading.Event().wait(0.001)


def test_what_waits_meanwhile_is_the_next_batch_and_none_is_larger_than_it_may_be(batcher, model):
    first = _at_work(batcher, model)
    later = [batcher.submit([row])[0] for row in range(1, 7)]
    model.free.set()
    assert [one.result(10) for one in (first, *later)] == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_unlike_rows_share_no_batch_and_who_came_first_is_answered_first(model):
    batcher = Batcher(model, rows=2, waiting=10, alike=lambda row: row % 2)
    first = _at_work(batcher, model)
    later = batcher.submit([1, 2, 4, 3, 6, 5])
    model.free.set()
    assert [one.result(10) for one in (first, *later)] == [0, 2, 4, 8, 6, 12, 10]
    assert model.batches == [[0], [1, 3], [2, 4], [6], [5]]
    batcher.close()


def test_a_row_that_fails_alone_leaves_the_others(batcher, model):
    first = _at_work(batcher, model)
    good, bad, other = batcher.submit([1, -5, 2])
    model.free.set()
    assert (first.result(10), good.result(10), other.result(10)) == (0, 2, 4)
    with pytest.raises(ValueError, match="-5"):
        bad.result(10)


def test_a_batch_that_fails_is_told_to_its_callers_and_the_next_one_comes():
    def breaks(rows):
        if "bad" in rows:
            raise RuntimeError("no memory")
        return rows

    batcher = Batcher(breaks, rows=1, waiting=5)
    bad, good = batcher.submit(["bad", "good"])
    with pytest.raises(RuntimeError, match="no memory"):
        bad.result(10)
    assert good.result(10) == "good"
    batcher.close()


def test_more_than_may_wait_are_refused_whole(batcher, model):
    _at_work(batcher, model)
    batcher.submit(range(1, 9))
    with pytest.raises(Busy):
        batcher.submit([9, 10, 11])
    assert len(batcher) == 8
    (last, _) = batcher.submit([9, 10])
    model.free.set()
    assert last.result(10) == 18


def test_who_went_away_is_not_computed(batcher, model):
    _at_work(batcher, model)
    gone, stays = batcher.submit([1, 2])
    assert gone.cancel()
    model.free.set()
    assert stays.result(10) == 4
    with pytest.raises(CancelledError):
        gone.result(10)
    assert model.batches == [[0], [2]]


def test_what_waits_when_it_is_closed_is_answered_and_nothing_more_is_taken(batcher, model):
    _at_work(batcher, model)
    waiting = batcher.submit([1, 2])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    model.free.set()
    closing.join(10)
    assert [one.result(0) for one in waiting] == [2, 4]
    with pytest.raises(Busy):
        batcher.submit([3])
