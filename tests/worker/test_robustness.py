"""What tasks, disks and event loops do to a worker, and it goes on, or ends so that another can be started."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import pytest

from taskq import TaskQ
from taskq.broker.port import Committed, Polled, TopicPartition
from taskq.config import load_settings
from taskq.errors import BrokerUnavailable, CorruptLog, StorageFull
from taskq.worker import Worker, WorkerOptions
from taskq.worker.executors.async_ import AsyncCrew
from taskq.worker.executors.threads import ThreadCrew
from taskq.worker.progress import Progress
from taskq.worker.retries import describe
from taskq.worker.standing import Standing
from taskq.worker.supervisor import Supervisor
from taskq.worker.work import Feed, Work
from tests.processes import WAIT_S, wait_until
from tests.working import stalled, unfinished, wait_finished, working


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def dead_letters(worker: Worker) -> float:
    return sum(series[1][0] for series in worker.metrics_snapshot().get("taskq_dead_letters", ()))


def test_draining_lets_the_other_handlers_of_an_event_run_that_has_begun(app: TaskQ) -> None:
    ran: list[str] = []
    gate = threading.Event()
    event = app.event("happened")

    @event.subscribe
    def first() -> None:
        ran.append("first")
        gate.wait(WAIT_S)

    @event.subscribe
    def second() -> None:
        ran.append("second")
        gate.wait(WAIT_S)

    event.publish()
    event.publish()
    worker = Worker(app, WorkerOptions("default", concurrency=1))
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: len(worker._threads.queue) == 3, "one runs, three are queued")
    worker.drain()
    worker.drain()  # once more is nothing new
    wait_until(lambda: len(worker._threads.queue) == 1, "the event that has not begun is not run here")
    gate.set()
    thread.join(WAIT_S)
    assert sorted(ran) == ["first", "second"]
    with working(app, concurrency=1) as worker:
        wait_finished(worker)
    assert sorted(ran) == ["first", "first", "second", "second"]


def test_an_exception_that_can_not_be_told_is_a_dead_letter_like_others(app: TaskQ, backend: str) -> None:
    @app.task
    def on_thread() -> None:
        raise Mute

    @app.task
    async def on_loop() -> None:
        raise Mute

    assert describe(Mute(), "failed").type.endswith("Mute")
    for _ in range(3):
        on_thread.delay()
        on_loop.delay()
    with working(app, backend, concurrency=1) as worker:
        wait_until(lambda: dead_letters(worker) == 6, "all are dead letters")


def test_a_worker_ends_when_its_async_crew_does(app: TaskQ, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task
    async def on_loop() -> None:
        raise ValueError

    def breaks(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Feed, "fail", breaks)
    on_loop.delay()
    assert Worker(app, WorkerOptions("default", backend)).run() == 1


def test_a_stray_cancel_of_a_runner_costs_nothing(app: TaskQ) -> None:
    tasks: list[asyncio.Task[Any]] = []
    count = [0]

    @app.task
    async def counts() -> None:
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        tasks.append(task)
        count[0] += 1
        task.get_loop().call_soon(task.cancel)  # while it is idle, or has the next

    with working(app, concurrency=2) as worker:
        for number in range(1, 9):
            counts.delay()
            wait_until(partial(count.__contains__, number), "it ran")
            wait_until(lambda: not tasks[-1].cancelling() and len(worker._async._idle) == 2, "both are idle again")
        wait_finished(worker)
        assert dead_letters(worker) == 0


def test_a_cancelled_crew_leaves_what_runs_unfinished(backend: str) -> None:
    async def main() -> None:
        crew = AsyncCrew(2, Feed(1, lambda: None))
        async with anyio.create_task_group() as group:
            await group.start(crew.run)
            group.cancel_scope.cancel()  # from outside, not by `cancel`
        assert not crew._feed.failures

    with anyio.from_thread.start_blocking_portal(backend) as portal:
        portal.call(main)


@pytest.mark.parametrize("limit", [1, 2])
def test_few_may_be_in_flight(limit: int, tmp_path: Path) -> None:
    ran: list[int] = []
    with TaskQ("test", settings=load_settings(broker=str(tmp_path), in_flight_max=limit)) as app:

        @app.task
        def adds(number: int) -> None:
            ran.append(number)

        adds.map([(number,) for number in range(30)])
        with working(app, concurrency=1) as worker:
            wait_finished(worker)
    assert sorted(ran) == list(range(30))


def test_failures_that_can_not_be_buried_are_bounded(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task
    def fails() -> None:
        raise ValueError

    limit = app.settings.in_flight_max
    fails.map([()] * (6 * limit))
    is_full = threading.Event()
    is_full.set()
    worker = Worker(app, WorkerOptions("default"))
    send_many = worker._poller._producer.send_many

    def send(*letters: Any) -> object:
        if is_full.is_set():
            raise StorageFull("full")
        return send_many(*letters)

    monkeypatch.setattr(worker._poller._producer, "send_many", send)
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: worker._poller.feed.is_full and not worker._threads.queue, "nothing more is fetched")
    assert len(worker._poller.feed.failures) <= 3 * limit
    is_full.clear()
    wait_until(lambda: not worker._poller.feed.is_full, "it goes on")
    worker.stop()
    worker.stop()
    thread.join(WAIT_S)


def test_what_is_queued_is_bounded_in_bytes_too(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.worker.throttle.BYTES_MAX", 3_000_000)
    gate, count = threading.Event(), [0]

    @app.task
    def waits(text: str) -> None:
        gate.wait(WAIT_S)
        count[0] += 1

    for _ in range(60):
        waits.delay("x" * 500_000)
    with working(app, concurrency=2) as worker:
        wait_until(lambda: worker._poller.feed.is_full, "enough is queued")
        assert not app.broker.url.startswith("file:") or len(worker._threads.queue) < 50
        gate.set()
        wait_finished(worker)
        assert not stalled(worker)
        assert all(work.handed_out_bytes == 0 for work in worker._poller.works.values())
    assert count[0] == 60


def test_damage_hides_the_age_of_its_partition_and_nothing_else(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    @app.task
    def waits() -> None:
        gate.wait(WAIT_S)

    waits.options(key="same").map([()] * 3)

    def read(*_: object) -> None:
        raise CorruptLog("a file", 1, "why")

    with working(app) as worker:
        wait_until(lambda: worker._running(), "it runs")
        monkeypatch.setattr(worker._reader, "read", read)
        assert unfinished(worker) == 3
        page = worker.metrics_snapshot()
        assert len(page["taskq_backlog_age_seconds"]) == len(page["taskq_backlog"]) - 1
        assert "taskq_worker_info" in page
        monkeypatch.undo()
        gate.set()


def test_a_full_disk_delays_the_commit(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task
    def nothing() -> None: ...

    refused = [0]
    with working(app) as worker:
        commit = worker._poller._consumer.commit

        def commits(progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
            if refused[0] < 3:
                refused[0] += 1
                raise StorageFull("full")
            return commit(progress)

        monkeypatch.setattr(worker._poller._consumer, "commit", commits)
        nothing.delay()
        wait_until(lambda: refused[0] == 3, "it tries again")
        wait_finished(worker)

        def stored() -> int:
            return sum(
                committed.offset for committed in app.broker.admin().describe_group("default").committed.values()
            )

        wait_until(lambda: stored() == 1, "it is committed")


def test_damage_is_no_rebalance(app: TaskQ) -> None:
    @app.task
    def nothing() -> None: ...

    poller, tp = Worker(app, WorkerOptions("default"))._poller, TopicPartition("default", 0)
    poller.works[tp] = Work(tp, Progress(0))
    before = poller._metrics.rebalances.labels("default").read()
    poller._take_changes(Polled(errors={tp: CorruptLog("a file", 1, "why")}), 0.0)
    assert poller._metrics.rebalances.labels("default").read() == before


def test_stopping_threads_bears_a_runner_that_leaves_the_list_by_itself() -> None:
    class Racing(list[Any]):
        def __bool__(self) -> bool:
            return True

    crew = ThreadCrew(1, Feed(1, lambda: None))
    crew._idle = Racing()
    crew.stop()


def test_a_worker_that_can_not_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(number: int, fd: int) -> list[str]:
        tried.append(number)
        if len(tried) == 3:
            signal.raise_signal(signal.SIGTERM)
        raise OSError("no more processes")

    tried: list[int] = []
    monkeypatch.setattr("taskq.worker.supervisor.PAUSE_SECONDS_MAX", 0.0)
    supervisor = Supervisor(command, 1)
    assert supervisor.run() == 0
    assert tried == [0, 0, 0]


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("times", [1, 8])
@pytest.mark.parametrize("is_told", [True, False])
def test_a_worker_that_drains_while_brokers_can_not_store_goes_on_until_they_can(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch, times: int, *, runs: bool, is_told: bool
) -> None:
    """On Kafka a commit may have to wait until something else is given up, which whoever waits for it could not do.

    Where nothing is to be committed, it is still to be told that nothing may be running any more."""
    gate = threading.Event()

    @app.task
    def slow() -> None:
        assert gate.wait(WAIT_S)

    refused, stored = [0], list[int]()
    with working(app) as worker:
        slow.delay()
        wait_until(lambda: worker._running(), "it runs")
        if not runs:
            gate.set()
            wait_finished(worker)
            wait_until(lambda: all(work.is_committed for work in worker._poller.works.values()), "it is committed")
        poller = worker._poller
        monkeypatch.setattr(poller, "_is_remote", True)
        commit = poller._consumer.commit

        def commits(progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
            if poller._stop_by is not None and refused[0] < times:
                refused[0] += 1
                if is_told:
                    raise BrokerUnavailable("others join")
                return frozenset(progress)
            stored.append(len(progress))
            return commit(progress)

        monkeypatch.setattr(poller._consumer, "commit", commits)
        threading.Timer(0.2, gate.set).start()  # when it drains
    assert refused == [times]
    assert len(stored) <= 6, "all partitions of a topic that can be given up at once are committed at once"
    committed = app.broker.admin().describe_group("default").committed
    assert sum(one.offset for one in committed.values()) == 1
    assert not any(Standing.decode(one.offset, one.metadata)[0].limit for one in committed.values())


def test_what_one_topic_has_committed_is_given_up_while_another_waits_for_that(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Kafka, a member that joins anew can't commit until all others have, which may wait for a release of ours."""

    @app.task
    def nothing() -> None: ...

    with working(app) as worker:
        nothing.delay()
        wait_finished(worker)
        poller = worker._poller
        monkeypatch.setattr(poller, "_is_remote", True)
        commit = poller._consumer.commit

        def commits(progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
            others = {tp: one for tp, one in progress.items() if tp.topic != "default.retry"}
            if others != progress and any(tp.topic == "default" for tp in poller.works):
                commit(others)
                raise BrokerUnavailable("no answer yet")
            return commit(progress)

        wait_until(lambda: len(poller.works) == 16, "it has all")
        monkeypatch.setattr(poller._consumer, "commit", commits)
    found = app.broker.admin().describe_group("default").committed
    assert len(found) == 16
    assert not any(Standing.decode(one.offset, one.metadata)[0].limit for one in found.values())


def test_a_worker_that_is_told_twice_to_stop_waits_for_no_broker_that_can_not_store(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task
    def nothing() -> None: ...

    nothing.delay()
    worker = Worker(app, WorkerOptions(group="default"))
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_finished(worker)
    poller, refused = worker._poller, threading.Event()
    monkeypatch.setattr(poller, "_is_remote", True)

    def refuses(_: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
        refused.set()
        raise BrokerUnavailable("away")

    monkeypatch.setattr(worker.ending, "at_once", lambda: None)
    wait_until(lambda: all(work.is_committed for work in poller.works.values()), "it is committed")
    monkeypatch.setattr(poller._consumer, "commit", refuses)
    worker.stop()
    assert refused.wait(WAIT_S)
    worker.stop()
    thread.join(5)
    assert not thread.is_alive()
