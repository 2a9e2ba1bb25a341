"""What is cancelled never starts; what runs of it stops, as far as it can be stopped."""

from __future__ import annotations

import threading

import anyio

from taskq import Retry, TaskQ, current
from taskq.control import cancellation
from taskq.message import parse_id
from taskq.topics import CONTROL
from taskq.worker.deadoffice import retry_dead
from taskq.worker.gauges import dead_letters as count_dead
from tests.processes import WAIT_S, wait_until
from tests.worker.test_retries import dead_letters, executions
from tests.working import wait_finished, working


def test_what_waits_never_starts_whenever_it_was_cancelled(app: TaskQ, backend: str) -> None:
    gate, ran = threading.Event(), []

    @app.task(order="key", key=lambda number: "same" if number < 5 else str(number))
    def work(number: int) -> None:
        ran.append(number)
        if number == 0:
            gate.wait(WAIT_S)

    before = work.delay(100)
    before.cancel()
    first = work.delay(0)
    with working(app, backend, concurrency=1) as worker:
        counts = executions(worker.metrics_snapshot, work.name)
        wait_until(lambda: ran == [0], "the first runs")
        handles = {number: work.delay(number) for number in range(1, 10)}
        handles[2].cancel()
        handles[7].cancel()
        wait_until(lambda: len(worker._poller._cancels.ids) == 3, "the worker has heard")
        gate.set()
        wait_finished(worker)
        wait_until(lambda: counts("cancelled") >= 2, "they are counted")
        first.cancel()  # it has ended: nothing happens
    assert sorted(ran) == [0, 1, 3, 4, 5, 6, 8, 9]
    assert dead_letters(app) == []


def test_what_is_published_as_json_is_cancelled_like_others(app: TaskQ) -> None:
    ran: list[int] = []

    @app.task(serializer="json")
    def work(number: int) -> None:
        ran.append(number)

    work.delay(1).cancel()
    ident = "01a20cbc-a9e0-7367-9c85-3d9336586154"
    app.producer.send("default", b'{"task": "%s", "id": "%s", "args": [2]}' % (work.name.encode(), ident.encode()))
    app.producer.send_many(CONTROL, [cancellation(parse_id(ident))])
    work.delay(3)
    with working(app) as worker:
        counts = executions(worker.metrics_snapshot, work.name)
        wait_finished(worker)
        wait_until(lambda: counts("cancelled") == 2, "both are counted")
    assert ran == [3]


def test_what_a_person_retries_runs_though_it_was_cancelled_before_and_can_be_cancelled_again(app: TaskQ) -> None:
    is_mended, ran, gate = threading.Event(), list[int](), threading.Event()

    @app.task(retry=Retry(1, base=0))
    def work(number: int) -> None:
        if is_mended.is_set():
            ran.append(number)
            assert gate.wait(WAIT_S)
        raise ValueError("not yet")

    def given_up(count: int) -> bool:
        return count_dead(app.broker.admin(), "default") == count

    handles = [work.delay(1), work.delay(2)]
    with working(app, concurrency=1) as worker:
        counts = executions(worker.metrics_snapshot, work.name)
        wait_until(lambda: given_up(2), "they are dead letters")
        handles[0].cancel()
        is_mended.set()
        assert retry_dead(app.broker, "default", [handles[0].id]) == 1
        wait_until(lambda: ran == [1], "it runs")
        handles[1].cancel()  # of all that is cancelled, what waits is taken out
        wait_until(lambda: len(worker._poller._cancels.ids) == 2, "the worker has heard")
        assert retry_dead(app.broker, "default", [handles[1].id]) == 1
        handles[0].cancel()
        before = min(worker._poller._cancels.ids.values())
        wait_until(lambda: min(worker._poller._cancels.ids.values()) > before, "the worker has heard that, too")
        gate.set()
        wait_until(lambda: counts("cancelled") == 1 and given_up(1), "one is cancelled and one given up once more")
        wait_finished(worker)
    assert ran == [1, 2, 2]


def test_what_is_delayed_never_starts(app: TaskQ) -> None:
    ran: list[int] = []

    @app.task
    def work(number: int) -> None:
        ran.append(number)

    handle = work.options(delay=0.2).delay(1)
    work.options(delay=0.2).delay(2)
    handle.cancel()
    with working(app) as worker:
        counts = executions(worker.metrics_snapshot, work.name)
        wait_until(lambda: ran == [2] and counts("cancelled") == 1, "the other one runs")


def test_a_running_async_task_is_stopped_and_its_runner_goes_on(app: TaskQ, backend: str) -> None:
    events: list[str] = []

    @app.task
    async def endless() -> None:
        events.append("started")
        try:
            await anyio.Event().wait()
        finally:
            events.append("stopped")

    @app.task
    async def after() -> None:
        await anyio.lowlevel.checkpoint()
        events.append("after")

    handle = endless.delay()
    with working(app, backend, concurrency=1) as worker:
        wait_until(lambda: events == ["started"], "it runs")
        handle.cancel()
        wait_until(lambda: events == ["started", "stopped"], "it is stopped")
        after.map([()] * 5)
        wait_finished(worker)
    assert events == ["started", "stopped", *["after"] * 5]
    assert dead_letters(app) == []


def test_a_task_that_ends_all_the_same_has_ended(app: TaskQ, backend: str) -> None:
    events: list[str] = []

    @app.task
    async def shielded() -> None:
        events.append("started")
        try:
            await anyio.Event().wait()
        except BaseException:
            events.append("asked to stop")
            raise

    @app.task
    async def after() -> None:
        await anyio.lowlevel.checkpoint()
        events.append("after")

    with working(app, backend, concurrency=1) as worker:
        for _ in range(3):
            events.clear()
            handle = shielded.delay()
            wait_until(lambda: events == ["started"], "it runs")
            handle.cancel()
            after.delay()
            wait_until(lambda: events == ["started", "asked to stop", "after"], "the runner goes on")
        wait_finished(worker)


def test_a_thread_is_told(app: TaskQ) -> None:
    clock, started = threading.Event(), threading.Event()

    @app.task
    def polite() -> None:
        started.set()
        while True:
            current.check()
            clock.wait(0.005)

    handle = polite.delay()
    with working(app) as worker:
        counts = executions(worker.metrics_snapshot, polite.name)
        wait_until(started.is_set, "it runs")
        handle.cancel()
        wait_until(lambda: counts("cancelled") == 1, "it has heard")
        wait_finished(worker)
    assert dead_letters(app) == []
