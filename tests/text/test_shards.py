import math
import sys

import pytest

from tasks.errors import ParamsError
from tasks.text import shards


@pytest.mark.parametrize("engine", ["thread", "process"])
def test_results_come_in_the_order_of_the_tasks(engine):
    found = shards.run(math.sqrt, (n * n for n in range(12)), engine=engine, workers=2)
    assert list(found) == [float(n) for n in range(12)]


def test_tasks_are_taken_only_as_they_are_needed():
    taken = []

    def tasks():
        for n in range(50):
            taken.append(n)
            yield n

    assert next(shards.run(abs, tasks(), workers=2)) == 0
    assert len(taken) <= 6


def test_a_failure_comes_through_and_ends_the_work():
    with pytest.raises(ValueError, match="math domain"):
        list(shards.run(math.sqrt, [1, -1, *[4] * 20], workers=2))


def test_ray_that_is_not_installed_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ParamsError, match=r"pip install 'regraft\[ray\]'"):
        list(shards.run(abs, [1], engine="ray"))


@pytest.mark.e2e
def test_ray_gives_the_same():
    ray = pytest.importorskip("ray")
    try:
        assert list(shards.run(math.sqrt, [1, 4, 9], engine="ray", workers=2)) == [1.0, 2.0, 3.0]
    finally:
        ray.shutdown()
