"""Odd ways through a worker: forged headers, full disks, handovers taken back, errors while being cancelled."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest

from taskq import Reject, Retry, TaskQ
from taskq.broker.port import Message, TopicPartition
from taskq.errors import ConfigError, StorageFull
from taskq.trip import DUE, TO, TRIP
from taskq.worker import Worker
from taskq.worker.poller import HANDOVER_S
from taskq.worker.standing import Standing
from tests.processes import WAIT_S, wait_until
from tests.worker.test_retries import dead_letters, told
from tests.working import wait_finished, working


def hide(worker: Worker, tp: TopicPartition, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Have the group want `tp` from this worker as long as the list says [True]."""
    consumer: Any = worker._poller._consumer
    consumer = getattr(consumer, "_consumer", None) or consumer  # the one that has joined
    find, wanted = consumer._find_target, [True]
    monkeypatch.setattr(
        consumer, "_find_target", lambda now: {one for one in find(now) if not (wanted[0] and one == tp)}
    )
    return wanted


def test_the_limit_is_stored_before_what_lies_beyond_the_last_one_starts(app: TaskQ) -> None:
    app.broker.admin().create_topic("t", 1)
    seen: list[int] = []

    @app.task(topic="t")
    def work(number: int) -> None:
        if number == 400:
            committed = app.broker.admin().describe_group("default").committed[TopicPartition("t", 0)]
            seen.append(Standing.decode(committed.offset, committed.metadata)[0].limit)

    work.map([(number,) for number in range(500)])
    with working(app) as worker:
        wait_finished(worker)
    assert seen[0] > 400


def test_an_error_while_being_cancelled_is_the_tasks_own(app: TaskQ, backend: str) -> None:
    started, after = threading.Event(), threading.Event()

    @app.task
    async def stubborn() -> None:
        started.set()
        try:
            await anyio.Event().wait()
        finally:
            raise ValueError("in cleaning up")

    @app.task
    async def other() -> None:
        await anyio.lowlevel.checkpoint()
        after.set()

    handle = stubborn.delay()
    with working(app, backend, concurrency=1) as worker:
        wait_until(started.is_set, "it runs")
        handle.cancel()
        other.delay()
        wait_until(after.is_set, "the runner goes on")
        wait_finished(worker)
    assert dead_letters(app) == []


def test_outcomes_are_written_once_though_others_find_no_space(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    refused = [0]

    @app.task(retry=Retry(1, base=0))
    def again() -> None:
        runs.append(1)
        raise ValueError

    @app.task
    def given_up() -> None:
        raise Reject("no")

    with working(app) as worker:
        settler: Any = worker._poller._settler
        send_many = settler._producer.send_many

        def send(topic: str, messages: list[Message]) -> None:
            if topic.endswith(".dead") and refused[0] < 5:
                refused[0] += 1
                raise StorageFull("full")
            send_many(topic, messages)

        monkeypatch.setattr(settler._producer, "send_many", send)
        given_up.delay()
        again.delay()
        wait_until(lambda: refused[0] == 5, "it tries again, and not all the time")
        wait_until(lambda: len(dead_letters(app)) == 2, "both are given up")
        wait_finished(worker)
    assert len(runs) == 2


@pytest.mark.parametrize(
    "trip",
    [
        b'{"id": "%s"}' % (b"x" * 300),
        b'{"failures": -1}',
        b'{"attempts": 1%s}' % (b"0" * 400),
        b'{"attempts": "many"}',
        b"no JSON",
        b"\xff",
    ],
)
def test_a_forged_trip_is_a_dead_letter(app: TaskQ, trip: bytes) -> None:
    ran = threading.Event()

    @app.task(retry=Retry(3))
    def task() -> None:
        ran.set()

    cancelled = task.delay()
    cancelled.cancel()  # from now on ids are looked at
    value = b'{"task": "%s"}' % task.name.encode()
    app.producer.send_many("default", [Message(value, None, ((TRIP, trip),))])
    with working(app, concurrency=1) as worker:
        wait_until(lambda: len(dead_letters(app)) == 1, "it is given up")
        task.delay()
        wait_until(ran.is_set, "the worker goes on")
        wait_finished(worker)
    assert told(dead_letters(app)[0])["reason"] == "unreadable"


def test_a_forged_place_to_go_does_not_stop_the_mover(app: TaskQ) -> None:
    ran = threading.Event()

    @app.task
    def task() -> None:
        ran.set()

    forged = Message(b"x", None, ((DUE, b"1"), (TO, b"bad name/..")))
    app.producer.send_many("__taskq.delay.0", [forged])
    with working(app) as worker:
        wait_until(lambda: "__taskq.delays.dead" in app.broker.admin().topics(), "it is given up")
        task.options(delay=0.05).delay()
        wait_until(ran.is_set, "the mover goes on")
        wait_finished(worker)


def test_at_most_once_and_other_handlers_of_an_event_do_not_go_together(app: TaskQ) -> None:
    happened = app.event("happened")

    @app.task(at_most_once=True)
    def once(number: int) -> None: ...

    happened.subscribe(once)
    app.handlers("default")

    @happened.subscribe
    def other(number: int) -> None: ...

    with pytest.raises(ConfigError, match=r"at_most_once.*a group of its own"):
        app.handlers("default")


def test_at_most_once_on_a_full_disk_runs_when_there_is_space(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    refused = [0]

    @app.task(at_most_once=True)
    def once() -> None:
        ran.append(1)

    with working(app) as worker:
        wait_until(lambda: worker.ready().ok, "it is ready")
        poller: Any = worker._poller
        commit = poller._consumer.commit

        def refuse(progress: dict[TopicPartition, Any]) -> frozenset[TopicPartition]:
            if refused[0] < 6:
                refused[0] += 1
                assert not ran
                raise StorageFull("full")
            return commit(progress)  # type: ignore[no-any-return]

        monkeypatch.setattr(poller._consumer, "commit", refuse)
        once.delay()
        wait_until(lambda: ran == [1], "it runs at last")
        wait_finished(worker)
    assert refused == [6]


def test_a_crew_with_nothing_to_do_is_not_kept_from_it_by_another(app: TaskQ) -> None:
    gate, ran = threading.Event(), threading.Event()

    @app.task(topic="p", priority="normal")
    async def slow() -> None:
        while not gate.is_set():
            await anyio.lowlevel.checkpoint()

    @app.task(topic="p", priority="normal")
    def quick() -> None:
        ran.set()

    slow.map([()] * 300)
    with working(app, concurrency=2) as worker:
        wait_until(lambda: len(worker._async.queue) >= 64, "the loop's crew has enough")
        quick.options(priority="high").delay()
        wait_until(ran.is_set, "the threads' crew runs")
        gate.set()
        wait_finished(worker)


def test_each_attempt_in_place_looks_whether_it_is_too_late(app: TaskQ) -> None:
    runs: list[int] = []

    @app.task(order="key", key="k", expires=2, retry=Retry(20, base=0.45, factor=1, jitter=False))
    def task() -> None:
        runs.append(1)
        raise ValueError

    task.delay()
    with working(app) as worker:
        wait_finished(worker)
    assert 1 <= len(runs) <= 6
    assert dead_letters(app) == []


@pytest.mark.parametrize("app", ["embedded"], indirect=True)
def test_a_handover_that_is_taken_back_strands_nothing(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    app.broker.admin().create_topic("q", 1)
    tp, gate, ran = TopicPartition("q", 0), threading.Event(), []

    @app.task(topic="q", order="key", key="k")
    def task(number: int) -> None:
        ran.append(number)
        if number == 0:
            gate.wait(WAIT_S)

    with working(app, concurrency=2) as worker:
        task.map([(0,), (1,), (2,)])
        wait_until(lambda: ran == [0], "the first one runs")
        work = worker._poller.works[tp]
        wanted = hide(worker, tp, monkeypatch)
        wait_until(lambda: work.handover_at is not None, "another one wants it")
        wanted[0] = False
        task.delay(3)
        wanted[0] = True
        wait_until(lambda: len(work.parked) >= 2, "what waits is taken back")
        wanted[0] = False
        gate.set()
        wait_until(lambda: len(ran) == 4, "all run")
        wait_finished(worker)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("app", ["embedded"], indirect=True)
def test_what_is_tried_again_in_place_keeps_its_time_through_a_handover(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.broker.admin().create_topic("q", 1)
    tp, gate, runs = TopicPartition("q", 0), threading.Event(), []

    @app.task(topic="q")
    def blocks() -> None:
        gate.wait(WAIT_S)

    @app.task(topic="q", order="key", key="k", retry=Retry(3, base=60, jitter=False))
    def task() -> None:
        runs.append(time.monotonic())
        raise ValueError

    with working(app, concurrency=2) as worker:
        task.delay()
        blocks.delay()
        wait_until(lambda: runs and len(worker._running()) == 1, "one waits to be tried again, one runs")
        work = worker._poller.works[tp]
        wanted = hide(worker, tp, monkeypatch)
        wait_until(lambda: work.handover_at is not None, "another one wants it")
        wait_until(lambda: work.handover_at is None, "it is kept", within_s=HANDOVER_S + WAIT_S)
        wanted[0] = False
        wait_until(lambda: work.waiting == 1, "it waits again")
        gate.set()
        wait_until(lambda: not worker._running(), "the other one has ended")
        assert len(runs) == 1
