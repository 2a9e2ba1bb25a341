"""`taskq worker --only-delays`: what is delayed moves without an app."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.broker.port import TopicPartition
from tests.cli.conftest import Start, Taskq
from tests.processes import wait_until


@pytest.fixture
def app(tmp_path: Path) -> Iterator[TaskQ]:
    with TaskQ("later", broker=str(tmp_path / ".taskq")) as app:

        @app.task(name="tell", topic="later")
        def tell() -> None: ...

        yield app


def arrived(app: TaskQ) -> int:
    reader = app.broker.reader()
    partitions = range(app.broker.admin().partitions("later"))
    return sum(reader.bounds(TopicPartition("later", number)).end for number in partitions)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_it_moves_what_is_due_and_shows_what_is_not(start: Start, app: TaskQ, tmp_path: Path, processes: str):
    app.broker.admin().create_topic("later", 1)
    tell = app.tasks["tell"]
    tell.options(delay=0.5).delay()
    for _ in range(3):
        tell.options(delay=3000).delay()
    exporter = start("exporter", "--port", "0")
    assert exporter.metric("taskq_delayed") == 4
    assert exporter.metric("taskq_delayed", topic="__taskq.delay.1024") == 3
    mover = start("worker", "--only-delays", "-p", processes, "--metrics-port", "0", TASKQ_APP="nothing")
    mover.wait_for(r"taskq 0\.\S+, moves delayed invocations, runs none")
    mover.wait_for(f"broker +file://{tmp_path}/.taskq")
    wait_until(lambda: arrived(app) == 1, "what was due has come")
    wait_until(lambda: mover.get("/readyz") == (200, "ok\n"), "it is ready")
    wait_until(lambda: mover.metric("taskq_delayed") == 3, "it shows the others")
    wait_until(lambda: exporter.metric("taskq_delayed") == 3, "the exporter too")
    assert exporter.metric("taskq_backlog") == 0
    assert mover.end(signal.SIGTERM) == 0, mover.said
    assert "Traceback" not in mover.said


def test_movers_end_when_their_supervisor_is_killed(start: Start):
    movers = start("worker", "--only-delays", "-p", "2", "--no-metrics")
    pids = movers.wait_for(r"worker \d is process (\d+)", times=2)
    movers.wait_for("topics +__taskq.delay.0 to")
    os.kill(movers.process.pid, signal.SIGKILL)
    movers.end()  # the pipe ends when both have
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "both have ended")


@pytest.mark.parametrize(
    "arguments",
    [("-g", "feed"), ("-A", "shop"), ("-c", "2"), ("--reload",), ("--max-rss", "1GiB"), ("--max-invocations", "5")],
)
def test_what_only_concerns_running_is_a_usage_error(taskq: Taskq, arguments: tuple[str, ...]):
    said = taskq("worker", "--only-delays", *arguments)
    assert said.code == 2
    assert f"{arguments[0]} makes no sense with --only-delays" in said.err
