"""order= "key" and "partition": one at a time, in order, retries included; and nothing else waits for them."""

from __future__ import annotations

import threading
from collections import defaultdict
from functools import partial

import anyio.lowlevel

from taskq import Retry, TaskQ, current
from taskq.worker import Worker, WorkerOptions
from tests.processes import WAIT_S, wait_until
from tests.worker.test_retries import dead_letters
from tests.working import stalled, wait_finished, working


def test_each_key_is_in_order_one_at_a_time_retries_included(app: TaskQ, backend: str) -> None:
    history: defaultdict[str, list[int]] = defaultdict(list)
    running: defaultdict[str, int] = defaultdict(int)
    overlaps: list[str] = []

    async def step(key: str, number: int) -> None:
        running[key] += 1
        if running[key] > 1:
            overlaps.append(key)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        running[key] -= 1
        if number % 5 == 3 and current.attempt < 3:
            raise OSError("not yet")
        history[key].append(number)

    task = app.task(order="key", key=lambda key: key, retry=Retry(5, base=0.01), name="step")(step)
    task.map([(f"key {number % 20}", number) for number in range(400)])
    with working(app, backend, concurrency=16) as worker:
        wait_finished(worker)
    assert not overlaps
    assert history == {f"key {key}": list(range(key, 400, 20)) for key in range(20)}


def test_a_slow_key_delays_only_itself(app: TaskQ) -> None:
    gate, done = threading.Event(), []

    @app.task(order="key", key=lambda key: key)
    def work(key: str, number: int) -> None:
        if key == "slow" and number == 0:
            gate.wait(WAIT_S)
        done.append((key, number))

    work.map([("slow", number) for number in range(50)])
    work.map([(f"quick {number}", number) for number in range(200)])
    with working(app, concurrency=4) as worker:
        wait_until(lambda: len(done) == 200, "all but the slow key's have run")
        assert all(key != "slow" for key, _ in done)
        gate.set()
        wait_finished(worker)
    assert [number for key, number in done if key == "slow"] == list(range(50))


def test_a_partition_in_order(app: TaskQ, backend: str) -> None:
    history: defaultdict[int, list[int]] = defaultdict(list)

    @app.task(order="partition", retry=Retry(3, base=0))
    async def step(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        if number % 10 == 0 and current.attempt == 1:
            raise ValueError
        history[current.partition].append(current.offset)

    for number in range(200):
        step.delay(number)
    with working(app, backend, concurrency=8) as worker:
        wait_finished(worker)
    assert sum(map(len, history.values())) == 200
    assert all(offsets == sorted(offsets) for offsets in history.values())


def test_how_far_a_key_runs_ahead_is_bounded_and_seen(app: TaskQ) -> None:
    gate, done, limit = threading.Event(), [], 4000
    app.configure(in_flight_max=limit)

    @app.task(order="key", key="same")
    def work(number: int) -> None:
        if number == 0:
            gate.wait(WAIT_S)
        done.append(number)

    @app.task(topic="other")
    def other(number: int) -> None:
        done.append(-number)

    work.map([(number,) for number in range(4 * limit)])
    with working(app, concurrency=2) as worker:
        wait_until(partial(stalled, worker), "it stalls")
        other.delay(5)
        wait_until(lambda: -5 in done, "other partitions go on")
        assert all(one.waiting < 2 * limit for one in worker._poller.works.values())
        gate.set()
        wait_finished(worker)
    done.remove(-5)
    assert done == list(range(4 * limit))


def test_what_is_given_up_lets_the_next_one_run(app: TaskQ) -> None:
    done: list[int] = []

    @app.task(order="key", key="same", retry=Retry(2, base=0))
    def work(number: int) -> None:
        if number == 1:
            raise ValueError
        done.append(number)

    work.map([(number,) for number in range(5)])
    with working(app) as worker:
        wait_finished(worker)
    assert done == [0, 2, 3, 4]
    assert len(dead_letters(app)) == 1


def test_a_drain_ends_with_what_runs_and_the_next_worker_goes_on_in_order(app: TaskQ) -> None:
    gate, started, done = threading.Event(), threading.Event(), []

    @app.task(order="key", key="same")
    def work(number: int) -> None:
        if number == 3:
            started.set()
            gate.wait(WAIT_S)
        done.append(number)

    work.map([(number,) for number in range(10)])
    first = Worker(app, WorkerOptions("default", concurrency=4))
    thread = threading.Thread(target=first.run)
    thread.start()
    wait_until(started.is_set, "it is at the slow one")
    first.drain()
    wait_until(lambda: not any(one.waiting for one in first._poller.works.values()), "it takes back what waits")
    gate.set()
    thread.join(WAIT_S)
    assert done == [0, 1, 2, 3]
    with working(app) as worker:
        wait_finished(worker)
    assert done == list(range(10))
