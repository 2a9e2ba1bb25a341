"""A worker whose records were removed before it ran them, and one whose topic is deleted under it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.broker.cleaner import Cleaner
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.port import Committed, PartitionBounds, TopicPartition
from taskq.worker import Worker
from tests.processes import WAIT_S, wait_until
from tests.working import unfinished, wait_finished, working

TP = TopicPartition("default", 0)


@pytest.fixture
def app(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[TaskQ]:
    """With one partition of small segments, from which a day is enough to remove what nobody has run."""
    with TaskQ("test", broker=str(tmp_path)) as app:
        app.configure(offset_reset=getattr(request, "param", "earliest"))
        admin = app.broker.admin()
        admin.create_topic("default", 1, segment_bytes=1024, unfinished="delete", retention_ms=1000)
        yield app


def clean(app: TaskQ) -> PartitionBounds:
    assert isinstance(app.broker, EmbeddedBroker)
    assert Cleaner(app.broker._directory, now=lambda: time.time() + 86_400).clean()
    return app.broker.reader().bounds(TP)


def skipped(worker: Worker) -> float:
    series = worker.metrics_snapshot().get("taskq_skipped_offsets_total", ())
    return sum(numbers[0] for labels, numbers in series if labels == ("default", "default", "0"))


def commit(app: TaskQ, offset: int) -> None:
    consumer = app.broker.consumer("default", ["default"])
    wait_until(lambda: consumer.poll(1).assigned, "it is assigned")
    consumer.commit({TP: Committed(offset)})
    consumer.close()


def test_a_worker_goes_on_after_what_is_gone_and_counts_it(app: TaskQ) -> None:
    ran: list[int] = []

    @app.task
    def run(number: int) -> None:
        ran.append(number)

    run.map([(number,) for number in range(100)])
    commit(app, 10)
    assert clean(app) == PartitionBounds(100, 100)
    run.map([(number,) for number in range(100, 110)])
    with working(app) as worker:
        before = skipped(worker)
        wait_finished(worker)
        assert sorted(ran) == list(range(100, 110))
        wait_until(lambda: skipped(worker) == before + 90, "they are counted")
    assert app.broker.admin().describe_group("default").committed[TP] == Committed(110)


def test_what_still_runs_below_the_start_stays_unfinished(app: TaskQ) -> None:
    """The worker holds them; a crash must not lose them because others beside them are gone."""
    gate, ran = threading.Event(), []

    @app.task
    def run(number: int) -> None:
        if number < 2:
            gate.wait(WAIT_S)
        ran.append(number)

    run.map([(0,), (1,), (2,)])
    with working(app, concurrency=4) as worker:
        wait_until(lambda: ran == [2], "two run and one is done")
        work = worker._poller.works[TP]
        worker._poller._consumer._held[TP].is_paused = True  # type: ignore[attr-defined]
        run.map([(number,) for number in range(3, 50)])
        assert clean(app).start == 50
        run.delay(50)
        worker._poller._consumer._held[TP].is_paused = False  # type: ignore[attr-defined]
        worker._poller._consumer.wakeup()
        wait_until(lambda: 50 in ran, "it goes on")
        wait_until(lambda: work.progress.high == 51, "it is counted")
        assert work.progress.low == 0
        assert list(work.progress.unfinished(51)) == [range(2)]
        gate.set()
        wait_until(lambda: work.committed[0] == 51, "all is committed")
    assert sorted(ran) == [0, 1, 2, 50]


@pytest.mark.parametrize("app", ["error"], indirect=True)
def test_a_worker_may_ask_to_be_told_instead(app: TaskQ) -> None:
    ran: list[int] = []

    @app.task
    def run(number: int) -> None:
        ran.append(number)

    run.map([(number,) for number in range(100)])
    commit(app, 10)
    clean(app)
    run.delay(100)
    with working(app) as worker:
        wait_until(lambda: "offset 10 is due, but the log begins at 100" in str(worker.ready().reasons), "it says so")
        assert ran == []
    assert app.broker.admin().describe_group("default").committed[TP] == Committed(10)


def test_a_worker_goes_on_with_a_topic_that_is_deleted_and_made_anew(app: TaskQ) -> None:
    gate, ran = threading.Event(), []

    @app.task
    def run(number: int) -> None:
        if number == 0:
            gate.wait(WAIT_S)
        ran.append(number)

    run.map([(number,) for number in range(5)])
    with working(app, concurrency=2) as worker:
        wait_until(lambda: len(ran) == 4, "all but the first have run")
        app.broker.admin().delete_topic("default")
        wait_until(lambda: TP not in worker._poller.works, "it is lost")
        run.delay(7)
        wait_until(lambda: 7 in ran, "the new one runs")
        gate.set()
        wait_until(lambda: 0 in ran, "the old one ends")
        wait_until(lambda: unfinished(worker) == 0, "nothing is left")
    committed = app.broker.admin().describe_group("default").committed
    assert sum(progress.offset for progress in committed.values()) == 1
