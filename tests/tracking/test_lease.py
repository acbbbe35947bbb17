"""Leases on a registered model, in a database and through a real server."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mlflow import MlflowClient

from tasks.errors import TrackingError
from tasks.tracking import lease, server

TERM = 1.0
HOLD = """
import sys, time
from mlflow import MlflowClient
from tasks.tracking import lease
with lease.held(MlflowClient(sys.argv[1]), "reviews", "a process that dies", wait=60, term=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def client(tracked):
    found = MlflowClient(server.uri(tracked))
    found.create_registered_model("reviews")
    return found


def hold(client, *, wait=60.0, term=TERM):
    return lease.held(client, "reviews", "ann", wait=wait, term=term)


def names(client):
    return [model.name for model in client.search_registered_models()]


def test_a_lease_is_seen_while_it_is_held_and_leaves_nothing_behind(client):
    with hold(client) as held:
        assert names(client) == ["reviews", "reviews.lock.1"]
        held.demand()
    with hold(client) as again:
        assert again.number == 2
    assert names(client) == ["reviews"]


def test_a_lease_is_given_back_when_the_body_fails(client):
    with pytest.raises(ValueError, match="row 7"), hold(client):
        raise ValueError("row 7")
    assert names(client) == ["reviews"]


def test_another_models_lease_is_another_lease(client):
    client.create_registered_model("reviews.long")
    with hold(client), lease.held(client, "reviews.long", "ann", wait=5) as other:
        other.demand()


def test_a_lease_that_beats_outlasts_its_term(client):
    with hold(client, term=0.4) as held:
        with (
            pytest.raises(TrackingError, match=r"reviews: the lease is held by ann for 1\.5 s"),
            hold(client, wait=1.5),
        ):
            pass
        held.demand()


def test_of_many_that_ask_one_at_a_time_has_it(client):
    inside, most, numbers = 0, 0, []
    count = threading.Lock()

    def work(_):
        nonlocal inside, most
        with hold(client, term=10) as held:
            with count:
                inside += 1
                most = max(most, inside)
            held.demand()
            numbers.append(held.number)
            with count:
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert most == 1
    assert numbers == sorted(set(numbers))
    assert names(client) == ["reviews"]


def test_after_a_kill_the_next_waits_for_the_term_and_goes_on(client, tracked):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, server.uri(tracked), str(TERM)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = time.monotonic()
    with hold(client) as held:
        assert time.monotonic() - begun > TERM
        assert held.number == 2
        held.demand()
    assert names(client) == ["reviews"]


def test_of_many_that_wait_for_a_dead_holder_one_at_a_time_goes_on(client):
    client.create_registered_model("reviews.lock.1", {lease.BEAT: "last", lease.SECONDS: "0.5"})
    numbers = []

    def work(_):
        with hold(client, term=10) as held:
            numbers.append(held.number)
            held.demand()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert numbers == sorted(set(numbers))
    assert names(client) == ["reviews"]


def test_who_stood_still_for_too_long_has_lost_the_lease(client, monkeypatch):
    monkeypatch.setattr(lease.Lease, "keep", lambda self, ended: None)  # as a process that is suspended
    with hold(client, term=0.3) as held, hold(client, term=10) as taker:
        assert (held.number, taker.number) == (1, 2)
        taker.demand()
        with pytest.raises(
            TrackingError, match=r"took the lease 1 over, after 0\.3 s without a sign of life"
        ):
            held.demand()
    assert names(client) == ["reviews"]


def test_a_holder_that_comes_back_to_life_in_time_keeps_the_lease(client):
    dead = lease._Seen(1, {lease.BEAT: "long ago"})
    with hold(client) as held:
        assert lease._take(client, "reviews", "bob", dead, TERM) is None
        held.demand()


def test_a_number_that_was_given_back_is_held_by_nobody(client):
    """Who looked long ago and creates the model only now finds that its number is used up."""
    with hold(client):
        pass
    assert lease._created(client, "reviews.lock.1", "bob", TERM)
    assert lease._top(client, "reviews") is None
    with hold(client) as held:
        assert held.number == 2
    assert names(client) == ["reviews"]


def test_a_creation_whose_answer_was_lost_is_ones_own(client):
    client.create_registered_model("reviews.lock.1", {lease.BEAT: "ours"})
    assert lease._ours(client, "reviews.lock.1", "ours")
    assert not lease._ours(client, "reviews.lock.1", "theirs")


def test_a_server_that_is_gone_is_told_by_the_holder_and_not_by_its_end(client, monkeypatch, caplog):
    with hold(client) as held:
        monkeypatch.setattr(client, "set_registered_model_tag", _lost)
        with pytest.raises(TrackingError, match="gone"):
            held.demand()
    assert "the lease on reviews runs out by itself in 1 s" in caplog.text


def _lost(*args):
    raise lease.MlflowException("gone")
