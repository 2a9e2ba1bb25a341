"""The page of a process, asked as Prometheus and a prober would."""

from __future__ import annotations

import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from taskq.errors import ConfigError
from taskq.metrics import Metrics, Snapshot
from taskq.worker.http import REQUESTS_MAX, Health, Server, serve

WELL = Health()
Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[Server] = []

    def start(metrics: Metrics | None = None, health: Health = WELL, ready: Health = WELL, port: int = 0) -> Server:
        snapshot = (metrics or Metrics()).snapshot
        servers.append(serve("127.0.0.1", port, snapshot, lambda: health, lambda: ready))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def get(server: Server, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_what_prometheus_reads(start: Start):
    metrics = Metrics()
    metrics.published.labels("feed", 'a "quoted"\nname').inc(3)
    server = start(metrics)
    status, text = get(server, "/metrics")
    assert status == 200
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"topic": "feed", "task": 'a "quoted"\nname'}
    assert family.samples[0].value == 3
    assert server.url == f"http://127.0.0.1:{server.port}/metrics"


def test_a_well_process_answers_200(start: Start):
    server = start()
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/readyz") == (200, "ok\n")


def test_a_process_that_is_not_ready_answers_503_with_the_reasons(start: Start):
    server = start(ready=Health(("no partition is held", "the broker can't be reached")))
    assert get(server, "/healthz") == (200, "ok\n")
    assert get(server, "/readyz") == (503, "no partition is held\nthe broker can't be reached\n")


def test_an_unknown_path_names_the_known_ones(start: Start):
    status, text = get(start(), "/metric")
    assert status == 404
    assert text.split() == ["/metrics", "/healthz", "/readyz"]


def test_a_snapshot_that_fails_is_an_error_500_and_the_next_may_work(start: Start):
    server = start()

    def fails() -> Snapshot:
        raise KeyError("nothing")

    broken = serve("127.0.0.1", 0, fails, lambda: WELL, lambda: WELL)
    try:
        assert get(broken, "/metrics") == (500, "KeyError: 'nothing'\n")
        assert get(broken, "/healthz")[0] == 200
    finally:
        broken.close()
    assert get(server, "/metrics")[0] == 200


def test_a_port_in_use_is_a_config_error_that_says_what_to_do(start: Start):
    server = start()
    with pytest.raises(ConfigError, match=rf"port {server.port}: another process has it; --metrics-port 0 .*--no-met"):
        start(port=server.port)


def test_an_address_that_is_not_ours_is_a_config_error():
    with pytest.raises(ConfigError, match=r"can't serve metrics on 192\.0\.2\.1"):
        serve("192.0.2.1", 0, Metrics().snapshot, lambda: WELL, lambda: WELL)


def test_after_close_the_port_is_free(start: Start):
    server = start()
    server.close()
    server.close()
    start(port=server.port)


def test_head_has_no_body(start: Start):
    connection = http.client.HTTPConnection("127.0.0.1", start().port, timeout=5)
    connection.request("HEAD", "/healthz")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Content-Length"], answer.read()) == (200, "3", b"")
    connection.close()


def test_connections_over_the_limit_are_closed_at_once():
    asked, go_on = threading.Semaphore(0), threading.Event()

    def wait() -> Health:
        asked.release()
        go_on.wait(30)
        return WELL

    server = serve("127.0.0.1", 0, Metrics().snapshot, wait, lambda: WELL)
    waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(REQUESTS_MAX)]
    try:
        for connection in waiting:
            connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert asked.acquire(timeout=30)
        with pytest.raises(OSError):  # noqa: PT011 - closed or reset, as the system likes
            get(server, "/readyz")
    finally:
        go_on.set()
        for connection in waiting:
            assert connection.recv(1024).startswith(b"HTTP/1.0 200")
            connection.close()
        server.close()


def test_garbage_closes_only_its_own_connection(start: Start):
    server = start()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"\x00\xff\r\n\r\n")
        connection.recv(4096)
    assert get(server, "/healthz")[0] == 200


def test_a_thread_that_can_not_be_started_costs_its_connection_only(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    fails = threading.Semaphore(0)

    def fail(thread: threading.Thread) -> None:
        fails.release()
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        for _ in range(REQUESTS_MAX + 1):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                assert connection.recv(1) == b""
            assert fails.acquire(timeout=5)
    assert get(server, "/healthz") == (200, "ok\n")
