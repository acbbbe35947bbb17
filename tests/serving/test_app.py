"""What the server does about a request, whatever answers behind it."""

import errno
import html
import os
import re
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

from tasks.errors import InputError, TrackingError
from tasks.serving import app, messages
from tasks.serving.messages import Adapter, Answer, NoAdapter

TOKEN = "a token of more than sixteen characters"


class Echo:
    """A service that says what it was asked; `free` is cleared to keep the model at work."""

    def __init__(self):
        self.known, self.held, self.looks, self.news = {"echo"}, 0, 0, []
        self.free, self.begun = threading.Event(), threading.Event()
        self.free.set()

    def prepare(self, rows):
        for row in rows:
            if row.adapter not in {None, *self.known}:
                raise NoAdapter(f"no adapter {row.adapter!r} is served")
            if not row.text.strip():
                raise InputError("row 0: cleaned, nothing is left of its text")
        self.held += len(rows)
        return rows

    def answer(self, prepared):
        self.begun.set()
        assert self.free.wait(30)
        if any(row.text == "break" for row in prepared):
            raise RuntimeError("out of memory at 0x7f")
        return [Answer(adapter=row.adapter, prediction=row.text) for row in prepared]

    def alike(self, prepared):
        return None

    def release(self, prepared):
        self.held -= len(prepared)

    def adapters(self):
        return [
            Adapter(
                name=name,
                source="models:/m@champion",
                version="1",
                kind="label",
                labels=["a"],
                bytes=7,
                resident=True,
            )
            for name in sorted(self.known)
        ]

    def load(self, name, source):
        if "away" in source:
            raise TrackingError("MLflow at http://mlflow: no answer")
        if "full" in source:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/srv/regraft/champions")
        if "none" in source:
            raise InputError("m has no alias 'none'")
        self.known.add(name)
        return next(one for one in self.adapters() if one.name == name)

    def unload(self, name):
        if name not in self.known:
            raise NoAdapter(f"no adapter {name!r} is served")
        self.known.remove(name)

    def refresh(self):
        self.looks += 1
        news = self.news.pop() if self.news else []
        if isinstance(news, Exception):
            raise news
        return news


@pytest.fixture
def echo():
    return Echo()


@contextmanager
def asking(service, **settings):
    with TestClient(app.build(service, app.Settings(**settings)), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def client(echo):
    with asking(echo) as made:
        yield made


def _rows(*texts, adapter="echo"):
    return {"rows": [{"text": text, "adapter": adapter} for text in texts]}


def test_rows_are_answered_in_their_order_by_what_they_name(client, echo):
    rows = [{"text": "one", "adapter": "echo"}, {"text": "two"}, {"text": "three", "adapter": "echo"}]
    found = client.post("/predict", json={"rows": rows})
    assert found.status_code == 200
    assert found.json()["predictions"] == [
        {"adapter": "echo", "prediction": "one"},
        {"adapter": None, "prediction": "two"},
        {"adapter": "echo", "prediction": "three"},
    ]
    assert echo.held == 0


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        (_rows("x", adapter="ecko"), 404, "no adapter 'ecko'"),
        (_rows(" "), 422, "nothing is left of its text"),
        ({"rows": []}, 422, "at least 1 item"),
        (_rows(*["x"] * (messages.MOST_ROWS + 1)), 422, "at most 256 items"),
        (_rows("x" * (messages.MOST_CHARACTERS + 1)), 422, "rows.0.text: String should have at most 20000"),
        ({"rows": [{"text": 5}]}, 422, "rows.0.text"),
        ({"rows": [{"text": "x", "model": "y"}]}, 422, "rows.0.model: Extra inputs"),
        ({}, 422, "rows: Field required"),
    ],
)
def test_what_cannot_be_answered_is_told_with_its_place(client, echo, body, status, told):
    found = client.post("/predict", json=body)
    assert (found.status_code, echo.held) == (status, 0)
    assert told in found.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nan",
        b'{"rows": [{"text": NaN}]}',
        b'{"rows": [{"text": "\\ud800"}]}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
def test_a_body_that_is_no_text_in_json_is_the_callers_fault(client, body):
    found = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= found.status_code < 500


def test_a_body_that_is_too_large_is_refused_though_it_claims_no_length(echo):
    def parts():
        for _ in range(64):
            yield b" " * 1024

    with asking(echo, body=4096) as client:
        found = client.post("/predict", content=parts(), headers={"Content-Type": "application/json"})
    assert found.status_code == 413
    assert "4,096 bytes at most" in found.json()["detail"]


def test_more_rows_than_may_wait_are_to_come_again(echo):
    with asking(echo, batch=1, waiting=2) as client:
        echo.free.clear()
        threads = [threading.Thread(target=client.post, args=("/predict",), kwargs={"json": _rows("x")})]
        threads[0].start()
        assert echo.begun.wait(30)
        threads.append(
            threading.Thread(target=client.post, args=("/predict",), kwargs={"json": _rows("y", "z")})
        )
        threads[1].start()
        _until(lambda: echo.held == 3)
        found = client.post("/predict", json=_rows("w"))
        echo.free.set()
        for one in threads:
            one.join(30)
    assert (found.status_code, found.headers["Retry-After"]) == (429, "1")
    assert echo.held == 0


def _until(holds):
    ends = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_a_fault_of_ours_is_a_500_that_gives_nothing_away(client, echo):
    found = client.post("/predict", json=_rows("break"))
    assert (found.status_code, echo.held) == (500, 0)
    assert "0x7f" not in found.text


@pytest.mark.parametrize("path", ["/predict", "/adapters", "/metrics"])
def test_without_the_token_nothing_is_said(echo, path):
    with asking(echo, token=TOKEN) as client:
        ask = client.post if path == "/predict" else client.get
        for borne in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": b"Bearer \xe9"},
        ):
            found = ask(path, headers=borne)
            assert (found.status_code, found.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert ask(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 422)
        assert client.get("/health").json() == {"status": "ok", "adapters": 1}


def test_a_page_of_another_site_that_calls_us_by_its_own_name_is_refused(echo):
    with asking(echo, hosts=("localhost", "127.0.0.1")) as client:
        assert client.get("/adapters", headers={"Host": "evil.example"}).status_code == 400
        assert client.get("/adapters", headers={"Host": "localhost:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("name", "source", "status"),
    [
        ("new", "models:/m@champion", 200),
        ("new", "models:/m/3", 200),
        ("new", "/etc", 422),
        ("new", "models:/m@none", 422),
        ("new", "models:/away@champion", 503),
        ("new", "models:/full@champion", 503),
        ("-", "models:/m@champion", 422),
        ("x" * 101, "models:/m@champion", 422),
    ],
)
def test_an_adapter_is_loaded_from_the_registry_alone(client, name, source, status):
    found = client.put(f"/adapters/{name}", json={"source": source})
    assert found.status_code == status, found.text
    assert (name in {one["name"] for one in client.get("/adapters").json()["adapters"]}) == (status == 200)


def test_what_is_unloaded_answers_no_more(client):
    assert client.delete("/adapters/echo").status_code == 204
    assert client.post("/predict", json=_rows("x")).status_code == 404
    assert client.delete("/adapters/echo").status_code == 404


def test_prometheus_reads_requests_rows_and_batches(client):
    client.post("/predict", json=_rows("one", "two"))
    client.post("/predict", json={"rows": [{"text": "bare"}]})
    client.get("/nothing/here")
    page = client.get("/metrics").text
    for line in (
        'regraft_requests_total{path="/predict",status="200"} 2.0',
        'regraft_requests_total{path="(none)",status="404"} 1.0',
        'regraft_rows_total{adapter="echo"} 2.0',
        'regraft_rows_total{adapter="(base)"} 1.0',
        'regraft_batch_rows_bucket{le="2.0"} 2.0',
        "regraft_waiting_rows 0.0",
        "regraft_resident_bytes 7.0",
    ):
        assert line in page.split("\n"), line


def test_unlike_rows_of_one_request_are_answered_in_their_order_by_several_batches(echo, monkeypatch):
    monkeypatch.setattr(echo, "alike", lambda row: len(row.text))
    with asking(echo) as client:
        found = client.post("/predict", json=_rows("one", "three", "two")).json()["predictions"]
        assert "regraft_batch_rows_count 2.0" in client.get("/metrics").text.split("\n")
    assert [one["prediction"] for one in found] == ["one", "three", "two"]


def test_aliases_are_followed_and_a_registry_that_is_away_stops_nothing(echo, caplog):
    caplog.set_level("INFO", logger="tasks.serving.app")
    away = TrackingError("MLflow at http://mlflow: no answer")
    echo.news = [[away, "echo: models:/m@champion is version 2 now"], OSError("No space left"), away]
    with asking(echo, refresh=0.01) as client:
        _until(lambda: echo.looks > 3)
        assert client.post("/predict", json=_rows("x")).status_code == 200
        assert "regraft_refresh_failures_total 3.0" in client.get("/metrics").text
    told = [record.getMessage() for record in caplog.records]
    lost = "an alias was not followed: MLflow at http://mlflow: no answer"
    assert told == [
        lost,
        "an alias was not followed: No space left",
        lost,
        "echo: models:/m@champion is version 2 now",
    ]


def test_a_full_disk_is_told_without_its_paths(client):
    found = client.put("/adapters/new", json={"source": "models:/full@champion"})
    assert found.json() == {"detail": "the server cannot read or write a file: No space left on device"}


@contextmanager
def listening(service):
    """A server on a port of its own, its thread and address."""
    config = uvicorn.Config(
        app.build(service, app.Settings()), port=0, log_level="warning", timeout_graceful_shutdown=30
    )
    made = uvicorn.Server(config)
    running = threading.Thread(target=made.run)
    running.start()
    try:
        _until(lambda: made.started)
        yield made, running, f"http://127.0.0.1:{made.servers[0].sockets[0].getsockname()[1]}"
    finally:
        made.should_exit = True
        running.join(60)


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
def test_the_page_answers_at_once_and_runs_nothing_that_a_label_says(echo, monkeypatch):
    hostile = '<img src="x" onerror="document.title=1">'
    answer = Answer(adapter="echo", prediction=hostile, probabilities={hostile: 0.75, "no": 0.25})
    monkeypatch.setattr(echo, "answer", lambda rows: [answer] * len(rows))
    with listening(echo) as (_, _, address):
        found = subprocess.run(
            [BROWSER, "--headless=new", "--no-sandbox", "--virtual-time-budget=10000", "--dump-dom", address],
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    assert f"<strong>{html.escape(hostile, quote=False)}</strong><small>0.750</small>" in found
    assert re.search(r"\d answers in \d+ ms", found)
    assert "<img" not in found
    assert "<title>1" not in found


def test_told_to_end_it_answers_what_it_has_begun_and_takes_no_more(echo):
    echo.free.clear()
    with listening(echo) as (made, running, address), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{address}/predict", json=_rows("x"), timeout=60)
        assert echo.begun.wait(30)
        made.should_exit = True
        _until(lambda: not made.servers[0].is_serving())
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{address}/health")
        assert running.is_alive()
        echo.free.set()
        found = asked.result(30)
        running.join(30)
    assert (found.status_code, found.json()["predictions"][0]["prediction"]) == (200, "x")
    assert not running.is_alive()


def test_the_page_needs_no_other_host(client):
    found = client.get("/")
    assert "connect-src 'self'" in found.headers["Content-Security-Policy"]
    assert "http://" not in found.text
    assert "https://" not in found.text


def test_the_schema_names_what_may_go_wrong(client):
    told = client.get("/openapi.json").json()["paths"]
    assert {"401", "404", "413", "422", "429"} <= told["/predict"]["post"]["responses"].keys()
