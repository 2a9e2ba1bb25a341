"""`scripts/kafka`, as people run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from tests.kafka.jars import Jars
from tests.kafka.ports import Ports

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run("start", ...)` in a directory of the test's own."""

    def run(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "kafka"), command, "--folder", str(tmp_path / "kafka"), *arguments],
            capture_output=True,
            text=True,
            timeout=50,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture
def port() -> Iterator[str]:
    ports = Ports()
    yield str(ports.numbers[0])
    ports.close()


@pytest.mark.alone
def test_it_runs_until_it_is_stopped(kafka_jars: Jars, run: Run, port: str) -> None:
    started = run("start", "--port", port)
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout == f"kafka://127.0.0.1:{port}\n"
        assert "stop: scripts/kafka stop --folder" in started.stderr
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "log_level": 0})
        assert list(admin.list_topics(timeout=10).brokers) == [1]
        assert "answers\nkafka://" in run("status").stdout
        assert run("tool", "kafka-topics", "--create", "--topic", "t").stdout == "Created topic t.\n"
        assert "runs already" in run("start").stderr
    finally:
        stopped = run("stop")
    assert stopped.returncode == 0, stopped.stderr
    status = run("status")
    assert status.returncode == 1
    assert "no process, does not answer" in status.stdout

    assert "has the data of 1 node" in run("start", "--nodes", "3").stderr
    try:
        assert run("start", "--port", port).returncode == 0
        assert run("tool", "kafka-topics", "--list").stdout == "t\n"
    finally:
        run("stop", "--delete")
    assert "nothing was started" in run("status").stderr


def test_a_port_that_is_taken(kafka_jars: Jars, run: Run, port: str) -> None:
    taken = str(int(port) - 1)  # the first of the block: bound, so that nobody else takes the others
    started = run("start", "--port", taken)
    assert started.returncode == 1
    assert f"something listens on 127.0.0.1:{taken} already: choose another --port" in started.stderr
    assert "nothing was started" in run("status").stderr


def test_without_java(run: Run, tmp_path: Path) -> None:
    started = run("start", PATH=str(tmp_path))
    assert started.returncode == 1
    assert started.stderr.startswith("scripts/kafka: java is not installed. Kafka needs Java 17 or newer: on Debian")
    assert "docker" in started.stderr


def test_a_tool_that_it_does_not_know(run: Run) -> None:
    assert "no tool topics, but kafka-acls" in run("tool", "topics").stderr
