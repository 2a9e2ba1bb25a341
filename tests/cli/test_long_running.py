"""`taskq worker` and `taskq exporter` as processes: their first lines, their work, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Start, Taskq

TASKS = """
import os, time
from pathlib import Path
from taskq import task

def say(line):
    print(line, flush=True)

@task(name="add", topic="numbers", group="sums")
def add(a: int, b: int) -> None:
    say(f"sum {a + b}")

@task(name="aadd", topic="numbers", group="sums")
async def aadd(a: int, b: int) -> None:
    say(f"asum {a + b}")

@task(name="wait", topic="numbers", group="sums")
def wait(fifo: str) -> None:
    say("waiting")
    Path(fifo).read_text()
    say("waited")
"""


@pytest.fixture(autouse=True)
def tasks(taskq: Taskq, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(TASKS)
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\napp = 'sums'\npartitions = 4\n")


@pytest.fixture
def send(start: Start) -> Callable[..., None]:
    def send(name: str, *args: object) -> None:
        process = start("send", name, "--args", json.dumps(args))
        assert process.end() == 0, process.said

    return send


Send = Callable[..., None]
WORKER = ("worker", "-g", "sums", "--metrics-port", "0")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_worker_says_who_it_is_works_and_drains(start: Start, send: Send, backend: str, tmp_path: Path):
    worker = start(*WORKER, "--backend", backend, "-c", "3")
    worker.wait_for("holds numbers/0, numbers/1, numbers/2, numbers/3")
    for line in (
        r"taskq 0\.\S+, group sums",
        f"broker +file://{tmp_path}/.taskq",
        "tasks +aadd, add, wait",
        r"topics +numbers \(4 partitions\)",
        f"concurrency +3, on {backend}",
        r"metrics +http://127\.0\.0\.1:\d+/metrics",
    ):
        worker.wait_for(line)
    send("add", 1, 2)
    send("aadd", 3, 4)
    worker.wait_for("^sum 3$|\nsum 3\n")
    worker.wait_for("^asum 7$|\nasum 7\n")
    assert worker.get("/healthz") == (200, "ok\n")
    assert worker.get("/readyz") == (200, "ok\n")
    assert worker.end(signal.SIGTERM) == 0, worker.said
    assert "Traceback" not in worker.said


def test_ctrl_c_lets_what_runs_end(start: Start, send: Send, tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    worker = start(*WORKER)
    send("wait", str(fifo))
    worker.wait_for("waiting")
    worker.process.send_signal(signal.SIGINT)
    worker.wait_for("draining")
    fifo.write_text("go on")
    assert worker.end() == 0, worker.said
    assert "waited" in worker.said


def test_a_second_signal_stops_at_once(start: Start, send: Send, tmp_path: Path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    worker = start(*WORKER)
    send("wait", str(fifo))
    worker.wait_for("waiting")
    worker.process.send_signal(signal.SIGINT)
    worker.wait_for("draining")
    assert worker.insist(signal.SIGTERM) == 1, worker.said
    assert "waited" not in worker.said


def test_two_processes_share_the_work_and_are_one_page(start: Start, send: Send):
    workers = start(*WORKER, "-p", "2")
    workers.wait_for("holds numbers", times=2)
    for number in range(6):
        send("add", number, 0)
    workers.wait_for(r"sum \d", times=6)
    assert workers.get("/readyz") == (200, "ok\n")
    workers.wait_for_metric("taskq_executions_total", 6, task="add", outcome="done")
    assert workers.metric("taskq_log_unsynced_seconds", group="sums") < 10
    assert workers.end(signal.SIGTERM) == 0, workers.said


def test_a_killed_process_is_replaced_and_its_partitions_go_on(start: Start, send: Send):
    workers = start(*WORKER, "-p", "2")
    first = int(workers.wait_for(r"worker 0 is process (\d+)")[0])
    workers.wait_for("holds numbers", times=2)
    os.kill(first, signal.SIGKILL)
    workers.wait_for(r"worker 0 is process (\d+)", times=2)
    for number in range(4):
        send("add", number, 0)
    workers.wait_for(r"sum \d", times=4)
    assert workers.end(signal.SIGTERM) == 0, workers.said


def test_workers_end_when_their_supervisor_is_killed(start: Start):
    workers = start(*WORKER, "-p", "2")
    workers.wait_for("holds numbers", times=2)
    workers.process.kill()
    workers.wait_for("draining", times=2)
    workers.end()  # the pipe ends when both workers have


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-g", "sum"], "no task belongs to the group 'sum'; did you mean sums?"),
        (["-g", "sums", "-A", "smus"], "there is no module 'smus'"),
        (["-g", "sums", "--backend", "gevent"], "gevent"),
        (["-g", "sums", "-c", "0"], "0"),
        (["-g", "sums", "--broker", "amqp://x"], "amqp"),
    ],
)
def test_what_makes_no_sense_is_exit_code_2(start: Start, arguments: list[str], message: str, processes: str):
    worker = start("worker", "--no-metrics", "-p", processes, *arguments)
    assert worker.end() == 2, worker.said
    assert message in worker.said
    assert "Traceback" not in worker.said


def test_a_metrics_port_in_use_says_what_to_do(start: Start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        worker = start("worker", "-g", "sums", "--metrics-port", str(taken.getsockname()[1]))
        assert worker.end() == 2, worker.said
    assert "--metrics-port 0 takes any free port, --no-metrics none" in worker.said


def test_a_worker_without_metrics_serves_none(start: Start):
    worker = start("worker", "-g", "sums", "--no-metrics")
    worker.wait_for("metrics +not served")
    worker.wait_for("holds numbers/0")
    assert worker.end(signal.SIGTERM) == 0, worker.said


def test_the_backlog_is_what_was_published_until_a_worker_comes(start: Start, send: Send):
    for number in range(3):
        send("add", number, 0)
    exporter = start("exporter", "--port", "0")
    assert exporter.metric("taskq_backlog", group="sums") == 3
    assert exporter.metric("taskq_backlog_age_seconds", group="sums") > 0
    worker = start(*WORKER)
    worker.wait_for(r"sum \d", times=3)
    assert worker.end(signal.SIGTERM) == 0, worker.said
    assert exporter.metric("taskq_backlog", group="sums") == 0
    assert exporter.metric("taskq_backlog_age_seconds", group="sums") == 0
    assert exporter.get("/readyz") == (200, "ok\n")
    assert exporter.end(signal.SIGTERM) == 0, exporter.said


def test_the_environment_says_what_the_command_line_does_not(start: Start, tmp_path: Path):
    worker = start(
        "worker",
        TASKQ_DEFAULT_GROUP="sums",
        TASKQ_METRICS_PORT="0",
        TASKQ_CONCURRENCY="2",
        TASKQ_BACKEND="trio",
        TASKQ_BROKER="other",
    )
    worker.wait_for("concurrency +2, on trio")
    worker.wait_for(f"broker +file://{tmp_path}/other")
    worker.wait_for("holds numbers/0")
    assert worker.end(signal.SIGTERM) == 0, worker.said
