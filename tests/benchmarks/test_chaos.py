"""Random strikes can be repeated, reach every victim, and what was not survived is counted and told; what
strikes does what it says; and a short soak is survived."""

import errno
import os
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
import sqlalchemy

from benchmarks.chaos import disk, network, report, services, soak, stands, strikes
from benchmarks.chaos.strikes import Strike
from benchmarks.chaos.trials import Trial

STRIKE = Strike(7, strikes.STAGE, "encoding", "finetuning", 1.5)


def test_a_strike_is_repeated_by_its_seed_and_hits_a_stage_that_is_due():
    drawn = [strikes.draw(seed) for seed in range(1, soak.TRIALS + 1)]
    assert drawn == [strikes.draw(seed) for seed in range(1, soak.TRIALS + 1)]
    assert {strike.victim for strike in drawn} == set(strikes.VICTIMS)
    assert {strike.stage for strike in drawn} == {*strikes.DUE, strikes.COMMIT}
    assert {strike.victim for strike in drawn if strike.stage == strikes.COMMIT} == {strikes.NETWORK}
    order = (*strikes.DUE, strikes.COMMIT)
    assert all(order.index(strike.due) <= order.index(strike.stage) for strike in drawn)
    assert all(0 <= strike.after <= strikes.LASTING for strike in drawn)
    assert {strike.victim for strike in drawn if strike.lasting} == {strikes.NETWORK}


def test_whom_this_machine_lacks_leaves_the_others_their_seeds():
    drawn = strikes.several(4, 1, [strikes.STAGE, strikes.WORKER])
    assert drawn == [strikes.draw(seed) for seed in (1, 4, 9, 12)]
    assert strikes.several(4, 1, []) == []


def test_a_quick_soak_has_both_a_process_and_a_server_among_its_victims():
    victims = {strike.victim for strike in strikes.several(soak.QUICK, 1, strikes.VICTIMS)}
    assert victims & {strikes.FLOW, strikes.STAGE}
    assert victims & {strikes.MLFLOW, strikes.PREFECT}


def test_one_trial_that_was_not_survived_is_counted_and_told_with_its_moment():
    trials = [Trial(STRIKE, 2, ()), Trial(STRIKE, 3, ("finetuning has a and not b",))]
    assert report.figures(trials) == {"chaos_survived_share": 0.5}
    assert report.lines(trials) == [
        {"contestant": "kill -9 of stage", "trials": 2, "survived": 1, "attempts": 5}
    ]
    assert report.told(trials[1]) == (
        "seed 7: stage 1.5 s into finetuning, due from encoding: finetuning has a and not b"
    )


def test_a_cut_is_told_with_how_long_it_lasted():
    cut = Strike(7, strikes.NETWORK, "encoding", "commit", 1.5, 20.0)
    assert report.told(Trial(cut, 2, ())) == (
        "seed 7: network 1.5 s into commit, for 20.0 s, due from encoding: the same, attempts: 2"
    )
    assert report.lines([Trial(cut, 2, ())])[0]["contestant"] == "network cut"


@pytest.fixture
def small_disk(tmp_path):
    if reason := disk.missing():
        pytest.skip(reason)
    root = tmp_path / "disk"
    with disk.limited(root, 8):
        yield root
    assert not os.path.ismount(root)
    assert list(root.iterdir()) == []


def test_on_a_full_disk_nothing_can_be_written_and_what_becomes_free_is_taken(small_disk):
    (small_disk / "a").write_bytes(b"a" * 2**16)
    with disk.full(small_disk):
        (small_disk / "a").unlink()
        full = threading.Event()
        while not full.wait(disk.PAUSE) and os.statvfs(small_disk).f_bavail:
            pass
        with pytest.raises(OSError) as refused:
            (small_disk / "b").write_bytes(b"b" * 2**16)
        assert refused.value.errno == errno.ENOSPC
    (small_disk / "b").write_bytes(b"b" * 2**16)


@pytest.fixture
def link():
    if reason := network.missing():
        pytest.skip(reason)
    with network.link() as made:
        yield made


def test_a_cut_network_answers_nothing_until_it_is_mended(link):
    code = "import socket; s = socket.create_server(('%s', 7)); c, _ = s.accept(); c.sendall(c.recv(9))"
    far = subprocess.Popen(link.inside([sys.executable, "-c", code % network.FAR]))
    try:
        with _connected() as near:
            link.cut()
            near.sendall(b"a")
            near.settimeout(1)
            with pytest.raises(TimeoutError):
                near.recv(9)
            link.heal()
            near.settimeout(30)
            assert near.recv(9) == b"a"
    finally:
        far.kill()
        far.wait()


def _connected():
    for _ in range(100):
        try:
            return socket.create_connection((network.FAR, 7), timeout=10)
        except ConnectionRefusedError:
            threading.Event().wait(0.1)
    raise AssertionError("nobody listens")


@pytest.mark.e2e
def test_a_database_that_was_killed_begins_again_on_its_files(tmp_path):
    if reason := stands.no_database():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="regraft-") as folder:
        database = services.PostgreSQL(Path(folder) / "database")
        try:
            place = database.address
            database.kill()
            with pytest.raises(sqlalchemy.exc.OperationalError):
                _databases(place)
            database.start()
            assert _databases(database.address) >= {"prefect", "mlflow"}
            assert database.address == place
        finally:
            database.end()


def _databases(address):
    engine = sqlalchemy.create_engine(address.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as connection:
        return set(connection.scalars(sqlalchemy.text("SELECT datname FROM pg_database")))


@pytest.mark.e2e
def test_a_short_soak_is_survived(tmp_path):
    trials = soak.soak(tmp_path, strikes.several(soak.QUICK, 1, strikes.VICTIMS))
    assert [report.told(trial) for trial in trials if trial.faults] == []
    assert len(trials) == soak.QUICK
