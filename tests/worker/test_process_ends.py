"""How what runs in a child process is ended, or ends by itself; and that nothing of it outlives what it should."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from taskq.worker.signals import SIGNAL_ECHO_S
from tests.processes import Bench, WorkerProcess, bench, is_gone, wait_until
from tests.worker.test_retries import executions
from tests.working import wait_finished, working

MODULE = "tests.apps.processes"
KILL_S_MAX = 0.1
"""How late what is over time may be killed."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("TEST_AUDIT", str(tmp_path / "audit"))
    with bench(tmp_path, MODULE) as made:
        yield made


def wait_gone(*pids: str, within_s: float = 5.0) -> None:
    for pid in pids:
        wait_until(partial(is_gone, int(pid)), f"process {pid} is gone", within_s)


@pytest.mark.alone
@pytest.mark.parametrize("task", ["be_late", "be_late_async"])
def test_what_is_over_time_is_killed_with_all_it_started(here: Bench, task: str) -> None:
    with working(here.app, group="feed") as worker:
        here.task("note").delay(1)  # so that a child is warm
        here.wait_for_lines(1)
        here.task(task).delay()
        _, family, pid, started = here.wait_for_lines(2)[1].split()
        wait_gone(family, pid)
        took_s = time.monotonic() - float(started)
        wait_finished(worker)
    (letter,) = here.dead_letters("feed")
    assert (letter["reason"], letter["type"]) == ("timeout", "taskq.errors.TimeLimitExceeded")
    assert letter["message"] == f"{MODULE}.{task} ran for longer than its timeout of 0.5 s"
    print(f"killed {took_s - 0.5:.3f} s after its time was over")
    assert 0.45 < took_s < 0.5 + KILL_S_MAX


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "ended with exit code 3"),
        ("crash", "was killed by SIGSEGV"),
        ("kill", "was killed by SIGKILL (by the system, if memory ran out)"),
        ("fork", "ended with exit code 4"),
        ("hang up", "broke its link to the worker"),
    ],
)
def test_a_child_that_dies_is_a_failed_attempt_and_harms_nobody(here: Bench, how: str, said: str) -> None:
    with working(here.app, group="feed", concurrency=2) as worker:
        here.task("stay").delay("gate")
        here.wait_for_lines(1)
        here.task("die").delay(how)
        here.task("die_but_once").delay(how)
        here.task("note").delay(1)
        here.wait_for_lines(5)
        (here.folder / "gate").touch()
        wait_finished(worker)
        (letter,) = here.dead_letters("feed")
    assert (letter["reason"], letter["type"]) == ("died", "taskq.errors.ProcessDied")
    assert letter["message"] == f"the process that ran it {said}"
    lines = here.audited()
    wait_gone(*[line.split()[-2] for line in lines if line.startswith("dies")])
    assert [line for line in lines if line.startswith("lives 2")], "the retry policy is for it"
    assert [line for line in lines if line.startswith("end gate")], "the other was not touched"


def test_what_is_cancelled_is_killed_with_all_it_started(here: Bench) -> None:
    with working(here.app, group="feed") as worker:
        counts = executions(worker.metrics_snapshot, here.task("stay_with_family").name)
        handle = here.task("stay_with_family").delay()
        _, family, pid, _ = here.wait_for_lines(1)[0].split()
        handle.cancel()
        wait_gone(family, pid)
        wait_until(lambda: counts("cancelled") == 1, "it is counted")
        wait_finished(worker)
        here.task("note").delay(1)
        here.wait_for_lines(2)
    assert here.dead_letters("feed") == []


def test_what_is_cancelled_while_its_child_starts_never_runs(here: Bench) -> None:
    with working(here.app, group="feed") as worker:
        counts = executions(worker.metrics_snapshot, here.task("note").name)
        handle = here.task("note").delay(1)
        wait_until(lambda: worker._processes.running(), "a child is started for it")
        handle.cancel()
        wait_until(lambda: counts("cancelled") == 1, "it is counted")
        wait_finished(worker)
    assert here.audited() == []


# --- the end of the worker


def running(here: Bench, worker: WorkerProcess) -> list[str]:
    """One child that does something, one that keeps the interpreter to itself, one that is idle: their pids."""
    here.task("stay").delay("gate")
    here.wait_for_lines(1)
    here.task("stay_with_family").delay()
    here.task("keep_the_interpreter").delay()
    here.wait_for_lines(3)
    (here.folder / "gate").touch()
    lines = here.wait_for_lines(4)
    pids = [word for line in lines for word in line.split()[1:] if word.isdigit()]
    assert len(set(pids)) == 4
    assert not any(is_gone(int(pid)) for pid in pids)
    return pids


def test_when_the_worker_is_killed_so_are_its_children_and_all_they_started(here: Bench) -> None:
    worker = here.start_worker("feed", "-c", "4").wait_ready()
    pids = running(here, worker)
    worker.kill()
    wait_gone(*pids, within_s=1.0)


def test_a_fork_of_the_worker_keeps_no_child_alive(here: Bench) -> None:
    worker = here.start_worker("feed", "-c", "4").wait_ready()
    here.task("stay_with_family").delay()
    here.wait_for_lines(1)
    here.task("leave_a_fork_of_the_worker").delay()
    lines = here.wait_for_lines(2)
    worker.kill()
    try:
        wait_gone(*lines[0].split()[1:3], within_s=1.0)
        assert not is_gone(int(lines[1].split()[1]))
    finally:
        os.kill(int(lines[1].split()[1]), signal.SIGKILL)


def test_a_second_signal_kills_children(here: Bench) -> None:
    worker = here.start_worker("feed", "-c", "4").wait_ready()
    pids = running(here, worker)
    worker.process.terminate()
    worker.wait_for("draining")
    drained_at = time.monotonic()
    wait_until(lambda: time.monotonic() > drained_at + 2 * SIGNAL_ECHO_S, "the next signal is no echo")
    worker.process.terminate()
    assert worker.process.wait(5) == 1
    wait_gone(*pids, within_s=0.1)
    assert here.unfinished("feed") == 2


def test_a_drain_lets_children_end_what_they_run_though_everybody_is_signalled(here: Bench) -> None:
    """As service managers do: SIGTERM to all processes of a service."""
    worker = here.start_worker("feed", "-c", "2").wait_ready()
    here.task("stay").delay("gate")
    _, _, pid, _ = here.wait_for_lines(1)[0].split()
    os.kill(int(pid), signal.SIGTERM)
    os.kill(int(pid), signal.SIGINT)
    worker.process.terminate()
    worker.wait_for("draining")
    (here.folder / "gate").touch()
    assert worker.process.wait(10) == 0
    assert here.audited()[1].startswith(f"end gate {pid}")
    wait_gone(pid, within_s=0.1)
    assert here.unfinished("feed") == 0
