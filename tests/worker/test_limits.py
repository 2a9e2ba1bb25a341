"""Limits of time, of how many at once, of how many a second; and what expires."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from taskq import Retry, TaskQ, current
from taskq.broker.port import Message
from taskq.decorators import SyncTask
from taskq.errors import TaskqError, TimeLimitExceeded
from taskq.trip import Trip, with_trip
from tests.processes import WAIT_S, wait_until
from tests.worker.test_retries import dead_letters, executions, told
from tests.working import wait_finished, working

LATE_S = 0.2
"""How late a busy machine may be, on top of what is promised."""

CLOCKS_S = 0.002
"""How far the clock that deadlines are told by may go from the one that wakes."""


def test_an_async_task_is_cancelled_at_its_deadline(app: TaskQ, backend: str) -> None:
    started: list[float] = []
    deadlines: list[float | None] = []
    stopped: list[float] = []

    @app.task(timeout=0.2)
    async def endless() -> None:
        started.append(time.time())
        deadlines.append(current.deadline)
        try:
            await anyio.Event().wait()
        finally:
            stopped.append(time.time())

    endless.delay()
    with working(app, backend) as worker:
        wait_until(lambda: len(dead_letters(app)) == 1, "it is given up")
        wait_finished(worker)
    (deadline,) = deadlines
    assert deadline is not None
    assert 0 <= started[0] + 0.2 - deadline < LATE_S, "its time begins a little before its first line"
    assert stopped[0] >= deadline - CLOCKS_S
    assert stopped[0] - started[0] < 0.3 + LATE_S
    letter = told(dead_letters(app)[0])
    assert letter["reason"] == "timeout"
    assert letter["type"] == "taskq.errors.TimeLimitExceeded"
    assert "timeout of 0.2 s" in letter["message"]


def test_what_is_over_time_is_tried_again_like_other_failures(app: TaskQ, backend: str) -> None:
    attempts: list[int] = []

    @app.task(timeout=0.05, retry=Retry(1, base=0, on=(TimeLimitExceeded,)))
    async def endless() -> None:
        attempts.append(current.attempt)
        await anyio.Event().wait()

    endless.delay()
    with working(app, backend) as worker:
        wait_until(lambda: len(dead_letters(app)) == 1, "it is given up")
        wait_finished(worker)
    assert attempts == [1, 2]


def test_a_timeout_of_the_tasks_own_is_its_own_affair(app: TaskQ, backend: str) -> None:
    @app.task(timeout=30)
    async def inner() -> None:
        with anyio.fail_after(0.01):
            await anyio.Event().wait()

    inner.delay()
    with working(app, backend) as worker:
        wait_until(lambda: len(dead_letters(app)) == 1, "it is given up")
        wait_finished(worker)
    assert told(dead_letters(app)[0])["type"] == "TimeoutError"


def test_a_thread_is_told_and_another_has_its_place(app: TaskQ) -> None:
    gate, deadlines, others = threading.Event(), [], threading.Event()

    @app.task(timeout=0.1)
    def stubborn() -> None:
        deadlines.append((time.time(), current.deadline))
        gate.wait(WAIT_S)

    @app.task
    def other() -> None:
        others.set()

    stubborn.delay()
    with working(app, concurrency=1) as worker:
        wait_until(lambda: deadlines, "it runs")
        other.delay()
        wait_until(others.is_set, "another runner has its place")
        assert worker.metrics_snapshot()["taskq_overdue_total"][-1][1][0] >= 1
        gate.set()
        wait_finished(worker)
        wait_until(lambda: len(worker._threads._runners) == 1, "as many runners as before")
    started, deadline = deadlines[0]
    assert deadline is not None
    assert abs(deadline - started - 0.1) < 0.05
    assert dead_letters(app) == []


def test_a_thread_that_asks_ends_at_its_deadline(app: TaskQ) -> None:
    clock = threading.Event()

    @app.task(timeout=0.1)
    def polite() -> None:
        while True:
            current.check()
            clock.wait(0.005)

    polite.delay()
    with working(app) as worker:
        wait_until(lambda: len(dead_letters(app)) == 1, "it is given up")
        wait_finished(worker)
    assert told(dead_letters(app)[0])["reason"] == "timeout"


def test_current_has_a_deadline_only_where_there_is_one(app: TaskQ) -> None:
    deadlines: list[float | None] = []

    @app.task(timeout=30)
    def limited() -> None:
        deadlines.append(current.deadline)

    @app.task
    def unlimited() -> None:
        deadlines.append(current.deadline)
        current.check()

    for _ in range(3):
        limited.options(key="same").delay()
        unlimited.options(key="same").delay()
    with working(app, concurrency=1) as worker:
        wait_finished(worker)
    assert [deadline is None for deadline in deadlines] == [False, True] * 3
    with pytest.raises(TaskqError, match="no task is running"):
        current.check()


def test_what_expires_is_not_started_and_is_counted(app: TaskQ) -> None:
    gate, ran = threading.Event(), []

    @app.task
    def blocks() -> None:
        gate.wait(WAIT_S)

    @app.task(expires=1.5)
    def soon(number: int) -> None:
        ran.append(number)

    with working(app, concurrency=1) as worker:
        counts = executions(worker.metrics_snapshot, soon.name)
        soon.delay(1)
        wait_until(lambda: ran == [1], "in time it runs")
        blocks.delay()
        wait_until(lambda: worker._running(), "it is blocked")
        soon.delay(2)
        soon.options(expires=3600).delay(3)
        later = time.monotonic() + 1.6
        wait_until(lambda: time.monotonic() > later, "the time passes")
        gate.set()
        wait_finished(worker)
        wait_until(lambda: counts("expired") == 1, "it is counted")
    assert ran == [1, 3]
    assert dead_letters(app) == []


def test_a_limit_of_how_many_run_at_once(app: TaskQ, backend: str) -> None:
    lock, running, most, done = threading.Lock(), [0], [0], []
    clock = threading.Event()

    @app.task(concurrency=2)
    def narrow() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        clock.wait(0.005)
        with lock:
            running[0] -= 1

    @app.task
    def wide(number: int) -> None:
        done.append(number)

    narrow.map([()] * 40)
    wide.map([(number,) for number in range(40)])
    with working(app, backend, concurrency=8) as worker:
        wait_finished(worker)
    assert most == [2]
    assert len(done) == 40


def test_a_rate_is_kept(app: TaskQ) -> None:
    started: list[float] = []

    @app.task(rate_limit="100/s")
    def limited() -> None:
        started.append(time.monotonic())

    limited.map([()] * 150)
    with working(app, concurrency=8) as worker:
        wait_finished(worker)
    assert len(started) == 150
    elapsed = started[-1] - started[0]
    assert 0.95 * 1.39 <= elapsed <= 1.15 * 1.49


def test_at_most_once_is_committed_before_it_runs(app: TaskQ) -> None:
    gate, committed = threading.Event(), []

    def stored() -> int:
        return sum(one.offset for one in app.broker.admin().describe_group("default").committed.values())

    @app.task(at_most_once=True)
    def once() -> None:
        committed.append(stored())
        gate.wait(WAIT_S)

    once.delay()
    with working(app) as worker:
        wait_until(lambda: committed == [1], "it is committed while it runs")
        gate.set()
        wait_finished(worker)


def of_any_priority(app: TaskQ, done: list[str], gate: threading.Event) -> SyncTask[[str], None]:
    """A task that adds its argument to `done`; "first" waits for the gate instead."""

    @app.task(topic="feed", priority="normal")
    def work(priority: str) -> None:
        if priority == "first":
            gate.wait(WAIT_S)
        else:
            done.append(priority)

    return work


def test_what_is_tried_again_keeps_its_priority(app: TaskQ) -> None:
    done: list[str] = []
    gate = threading.Event()

    work = of_any_priority(app, done, gate)

    def failed(priority: str) -> Message:
        value = b'{"task": "%s", "args": ["%s"]}' % (work.name.encode(), priority.encode())
        return Message(value, None, with_trip((), Trip(attempts=1, origin=(f"feed.{priority}", 0, 0))))

    with working(app, concurrency=1) as worker:
        work.delay("first")
        wait_until(lambda: worker._running(), "it is blocked")
        app.producer.send_many("default.retry", [failed(priority) for _ in range(500) for priority in ("low", "high")])
        gate.set()
        wait_finished(worker)
    early = done[100:400]
    assert early.count("high") > 4 * early.count("low") > 0


def test_priorities_are_weighted_and_none_starves(app: TaskQ) -> None:
    done: list[str] = []
    gate = threading.Event()

    work = of_any_priority(app, done, gate)

    with working(app, concurrency=1) as worker:
        work.delay("first")
        wait_until(lambda: worker._running(), "it is blocked")
        for priority in ("low", "normal", "high"):
            work.options(priority=priority).map([(priority,)] * 3000)
        gate.set()
        wait_finished(worker)
    assert {topic for topic in app.broker.admin().topics() if "feed" in topic} == {"feed", "feed.high", "feed.low"}
    assert {priority: done.count(priority) for priority in set(done)} == {"low": 3000, "normal": 3000, "high": 3000}
    early = done[200:2000]
    assert early.count("high") > early.count("normal") > early.count("low") > 0
    assert early.count("high") / early.count("normal") == pytest.approx(2, rel=0.2)
