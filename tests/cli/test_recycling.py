"""`taskq worker` with limits: on what a process may grow to, on what it may run, and on how long it drains."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq import TaskQ
from tests.cli.conftest import Start, Taskq
from tests.cli.processes import Process

TASKS = """
import os
from pathlib import Path
from taskq import TaskQ

app = TaskQ("grows")
kept = []

@app.task(name="count", topic="numbers", group="grows")
def count(number: int) -> None:
    with open("ran", "a") as ran:
        ran.write(f"{number} {os.getpid()}\\n")

@app.task(name="grow", topic="numbers", group="grows")
def grow(number: int) -> None:
    kept.append(b"x" * (64 << 20))
    count(number)

@app.task(name="wait", topic="numbers", group="grows")
def wait(number: int, fifo: str) -> None:
    print("waiting", flush=True)
    Path(fifo).read_text()
    count(number)
"""
WORKER = ("worker", "-g", "grows", "-A", "grows", "--metrics-port", "0")


@pytest.fixture(autouse=True)
def tasks(taskq: Taskq, tmp_path: Path) -> None:
    (tmp_path / "grows.py").write_text(TASKS)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[TaskQ]:
    """Publishes to the tasks of the workers, by other functions."""
    with TaskQ("grows", broker=str(tmp_path / ".taskq")) as app:
        app.configure(partitions=4)

        @app.task(name="count", topic="numbers")
        def count(number: int) -> None: ...

        @app.task(name="grow", topic="numbers")
        def grow(number: int) -> None: ...

        @app.task(name="wait", topic="numbers")
        def wait(number: int, fifo: str) -> None: ...

        yield app


def ran(folder: Path) -> list[tuple[int, int]]:
    """What ran in which process."""
    if not (folder / "ran").exists():
        return []
    return [(int(number), int(pid)) for number, pid in map(str.split, (folder / "ran").read_text().splitlines())]


def wait_ran(process: Process, count: int) -> None:
    process.wait_for_metric("taskq_backlog", 0, group="grows")
    process.wait_for_metric("taskq_executions_total", count, outcome="done")


def test_workers_are_replaced_when_they_have_run_so_many_and_nothing_runs_twice(
    start: Start, app: TaskQ, tmp_path: Path
):
    app.tasks["count"].map([(number,) for number in range(60)])
    workers = start(*WORKER, "-p", "2", "--max-invocations", "20", "-c", "1", TASKQ_COMMIT_INTERVAL_MS="1")
    workers.wait_for(r"exit code 75, since it has run \d+ invocations; the next starts now")
    app.tasks["count"].map([(number,) for number in range(60, 120)])
    wait_ran(workers, 120)
    assert workers.end(signal.SIGTERM) == 0, workers.said
    assert sorted(number for number, _ in ran(tmp_path)) == list(range(120))
    assert len({pid for _, pid in ran(tmp_path)}) >= 2
    assert "WARNING" not in workers.said
    assert workers.said.count("group grows\n") == 1


def test_one_process_that_grew_is_replaced(start: Start, app: TaskQ, tmp_path: Path):
    app.tasks["grow"].map([(number,) for number in range(3)])
    worker = start(*WORKER, "-c", "1", TASKQ_MAX_RSS="200MiB", TASKQ_COMMIT_INTERVAL_MS="1")
    worker.wait_for("supervising one worker")
    worker.wait_for(r"since it has \d+ MiB of memory after \d+ invocations; the next starts now")
    app.tasks["count"].map([(number,) for number in range(3, 6)])
    wait_ran(worker, 6)
    assert worker.end(signal.SIGTERM) == 0, worker.said
    assert sorted(number for number, _ in ran(tmp_path)) == list(range(6))
    assert len({pid for _, pid in ran(tmp_path)}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-rss", "2MiB"], "max_rss of 2 MiB is too low"),
        (["--max-rss", "1KiB"], "'1KiB' is less than 1MiB"),
        (["--max-rss", "much"], "the size 'much' is neither"),
        (["--max-invocations", "0"], "--max-invocations"),
        (["--drain-timeout", "-1"], "drain_timeout_s"),
    ],
)
def test_limits_that_make_no_sense_are_exit_code_2(start: Start, arguments: list[str], message: str):
    worker = start(*WORKER, *arguments)
    assert worker.end() == 2, worker.said
    assert message in worker.said
    assert "Traceback" not in worker.said


def test_limits_that_only_the_code_says_are_not_ignored(start: Start, tmp_path: Path):
    (tmp_path / "grows.py").write_text(TASKS + "app.configure(max_invocations=5)")
    worker = start(*WORKER)
    assert worker.end() == 2, worker.said
    assert "TASKQ_MAX_INVOCATIONS" in worker.said


@pytest.mark.parametrize("processes", ["1", "2"])
def test_what_is_unfinished_when_the_time_to_drain_is_over_is_handed_back_and_counted(
    start: Start, app: TaskQ, tmp_path: Path, processes: str
):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    app.tasks["wait"].delay(-1, str(fifo))
    worker = start(*WORKER, "-p", processes, "-c", "1", "--drain-timeout", "0.2")
    worker.wait_for("waiting")
    app.tasks["count"].map([(number,) for number in range(40)])
    if processes == "1":  # the other process would run them
        worker.wait_for_metric("taskq_backlog", 41, group="grows")
    assert worker.end(signal.SIGTERM) == 0, worker.said
    if processes == "1":
        worker.wait_for("40 invocations that had not begun are left to others")
    worker.wait_for("1 invocations still ran when the time to drain was over; they will run again")
    assert "did not stop" not in worker.said
    after = start(*WORKER)
    after.wait_for("waiting")
    fifo.write_text("go on")
    after.wait_for_metric("taskq_backlog", 0, group="grows")
    assert after.end(signal.SIGTERM) == 0, after.said
    assert sorted(number for number, _ in ran(tmp_path)) == list(range(-1, 40))
    assert not re.search("died holding it", after.said)
