"""A worker on every engine, inside one process: publish, run, retry, delay, order, give up, cancel."""

from __future__ import annotations

import threading
import time
from collections import defaultdict

import anyio.lowlevel

from taskq import Reject, Retry, TaskQ, current
from taskq.broker.port import TopicPartition
from taskq.worker.deadoffice import ALL, list_dead, purge_dead, retry_dead
from tests.processes import WAIT_S, wait_until
from tests.worker.test_retries import dead_letters, told
from tests.working import stalled, wait_finished, working


def test_what_is_published_runs_once(app: TaskQ, backend: str) -> None:
    ran: list[int] = []

    @app.task
    def in_thread(number: int) -> None:
        ran.append(number)

    @app.task
    async def on_loop(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        ran.append(number)

    in_thread.map([(number,) for number in range(500)])
    with working(app, backend) as worker:
        on_loop.map([(number,) for number in range(500, 1000)])
        for number in range(1000, 1050):
            in_thread.delay(number)
        wait_until(lambda: len(ran) >= 1050, "all have run")
        wait_finished(worker)
    assert sorted(ran) == list(range(1050))


def test_what_fails_is_tried_again_by_the_ladder(app: TaskQ, backend: str) -> None:
    starts: defaultdict[str, list[float]] = defaultdict(list)

    @app.task(retry=Retry(2, base=0.2, factor=5.0, jitter=False))
    async def third_time() -> None:
        starts[current.id].append(time.time())
        assert current.attempt == len(starts[current.id])
        if current.attempt < 3:
            raise OSError("not yet")

    @app.task(retry=Retry(1, base=0.1, jitter=False))
    def never() -> None:
        raise ValueError("always")

    third_time.map([()] * 20)
    never.delay()
    with working(app, backend) as worker:
        wait_until(lambda: sorted(map(len, starts.values())) == [3] * 20, "each has run three times")
        wait_until(lambda: len(dead_letters(app)) == 1, "what can't succeed is given up")
        wait_finished(worker)
    for first, second, third in starts.values():
        assert second - first >= 0.2
        assert third - second >= 1.0
    assert told(dead_letters(app)[0])["type"] == "ValueError"


def test_what_is_delayed_is_never_early(app: TaskQ, backend: str) -> None:
    late: list[float] = []

    @app.task
    async def note(due: float) -> None:
        late.append(time.time() - due)

    for number in range(60):
        delay = 0.05 + number * 0.05
        note.options(delay=delay).delay(time.time() + delay - 0.001)
    with working(app, backend) as worker:
        wait_until(lambda: len(late) == 60, "all have run")
        wait_finished(worker)
    assert min(late) >= 0
    print(f"late by {sorted(late)[30]:.3f} s (median), {max(late):.3f} s at most")


def test_each_key_is_in_order_failures_included(app: TaskQ, backend: str) -> None:
    history: defaultdict[str, list[int]] = defaultdict(list)

    @app.task(order="key", key=lambda key, number: key, retry=Retry(5, base=0.01))
    async def step(key: str, number: int) -> None:
        await anyio.lowlevel.checkpoint()
        if number % 5 == 3 and current.attempt < 3:
            raise OSError("not yet")
        history[key].append(number)

    step.map([(f"key {number % 20}", number) for number in range(400)])
    with working(app, backend, concurrency=16) as worker:
        wait_until(lambda: sum(map(len, history.values())) == 400, "all have run")
        wait_finished(worker)
    assert history == {f"key {key}": list(range(key, 400, 20)) for key in range(20)}


def test_dead_letters_are_listed_and_tried_again(app: TaskQ) -> None:
    ran: list[str] = []
    is_broken = True

    @app.task
    def note(text: str) -> None:
        if is_broken:
            raise Reject(f"no {text}")
        ran.append(text)

    with working(app) as worker:
        ids = sorted(note.delay(text).id for text in ("a", "b", "c"))
        wait_until(lambda: len(dead_letters(app)) == 3, "all are given up")
        wait_finished(worker)
        assert sorted(str(letter.id) for letter in list_dead(app.broker, "default")) == ids
        assert purge_dead(app.broker, "default", ids[:1]) == 1
        is_broken = False
        assert retry_dead(app.broker, "default", ALL) == 2
        wait_until(lambda: len(ran) == 2, "they run")
        wait_finished(worker)
    assert list(list_dead(app.broker, "default")) == []


def test_what_is_cancelled_never_starts(app: TaskQ) -> None:
    gate, ran = threading.Event(), []

    @app.task
    def note(number: int) -> None:
        ran.append(number)
        if number == 0:
            gate.wait(WAIT_S)

    @app.task
    async def forever() -> None:
        ran.append(-1)
        await anyio.sleep_forever()

    with working(app, concurrency=1) as worker:
        first = note.delay(0)
        wait_until(lambda: ran == [0], "the first runs")
        handles = [note.delay(number) for number in range(1, 5)]
        handles[1].cancel()
        later = note.options(delay=1.0).delay(9)
        later.cancel()
        running = forever.delay()
        wait_until(lambda: -1 in ran, "the endless one runs")
        running.cancel()
        wait_until(lambda: len(worker._poller._cancels.ids) == 3, "the worker has heard")
        gate.set()
        wait_until(lambda: sorted(ran) == [-1, 0, 1, 3, 4], "the others run")
        wait_finished(worker)
        at = time.monotonic()
        wait_until(lambda: time.monotonic() > at + 1.2, "the delayed one would be due")
        wait_finished(worker)
    assert sorted(ran) == [-1, 0, 1, 3, 4]
    first.cancel()  # it has ended: nothing happens


def test_at_most_once_is_committed_before_it_runs(app: TaskQ) -> None:
    found: list[bool] = []

    @app.task(at_most_once=True)
    def note() -> None:
        tp = TopicPartition(current.topic, current.partition)
        committed = app.broker.admin().describe_group("default").committed[tp]
        found.append(committed.offset > current.offset or len(committed.metadata) > 0)

    note.map([()] * 20)
    with working(app) as worker:
        wait_until(lambda: len(found) == 20, "all have run")
        wait_finished(worker)
    assert all(found)


def test_one_slow_delays_no_other_of_its_partition(app: TaskQ) -> None:
    gate, ran = threading.Event(), []

    @app.task
    def work(number: int) -> None:
        if number == 0:
            gate.wait(WAIT_S)
        ran.append(number)

    work.options(key="same").map([(number,) for number in range(2000)])
    with working(app, concurrency=2) as worker:
        wait_until(lambda: len(ran) == 1999, "all but the slow one have run")
        assert not stalled(worker)
        gate.set()
        wait_finished(worker)
    assert sorted(ran) == list(range(2000))
