"""When a worker process has had enough."""

from __future__ import annotations

import threading
from functools import partial

import pytest
from attrs import Factory, define

from taskq import TaskQ
from taskq.errors import ConfigError
from taskq.metrics import Metrics
from taskq.worker import Worker, WorkerOptions
from taskq.worker.link import EXIT_RECYCLE
from taskq.worker.recycle import Recycler, executed, rss_bytes
from tests.processes import WAIT_S, wait_until

MIB = 1 << 20


@define
class Process:
    """What a recycler looks at."""

    count: int = 0
    rss: int = 50 * MIB
    said: list[str] = Factory(list)

    def recycler(self, rss_max: int | None, invocations_max: int | None, random: float = 0.0) -> Recycler:
        return Recycler(
            rss_max, invocations_max, lambda: self.count, self.said.append, lambda: self.rss, lambda: random
        )


def test_it_ends_once_when_so_many_have_run():
    process = Process(count=1000)  # before this worker
    recycler = process.recycler(None, 100)
    process.count = 1099
    recycler.tick(0)
    assert process.said == []
    process.count = 1100
    recycler.tick(0)
    recycler.tick(0)
    assert process.said == ["it has run 100 invocations"]


@pytest.mark.parametrize(("random", "limit"), [(0.0, 1000), (0.5, 950), (0.999, 901)])
def test_up_to_a_tenth_earlier(random: float, limit: int):
    assert Process().recycler(None, 1000, random).invocations_max == limit


def test_one_is_one():
    assert Process().recycler(None, 1, 0.999).invocations_max == 1


def test_it_ends_when_it_has_too_much_memory_and_has_run_something():
    process = Process()
    recycler = process.recycler(100 * MIB, None)
    process.rss = 120 * MIB
    recycler.tick(0)
    assert process.said == []  # or none would ever run anything
    process.count = 1
    recycler.tick(0)
    assert process.said == ["it has 120 MiB of memory after 1 invocations"]


def test_a_limit_it_is_over_from_the_start_makes_no_sense():
    with pytest.raises(ConfigError, match="max_rss of 40 MiB is too low: the worker has 50 MiB"):
        Process().recycler(40 * MIB, None)


def test_runs_and_dead_letters_of_the_group_count():
    metrics = Metrics()
    for group, outcome in (("feed", "done"), ("feed", "dead"), ("feed", "retried"), ("feed", "skipped"), ("x", "done")):
        metrics.executions.labels(group, "task", outcome).inc()
    assert executed(metrics, "feed") == 3


def test_memory_is_that_of_this_process():
    before = rss_bytes()
    held = b"x" * (64 * MIB)
    assert rss_bytes() - before > 48 * MIB
    del held


def test_a_worker_ends_for_another_one_and_waits_for_what_runs(app: TaskQ):
    ran: list[int] = []
    go_on = threading.Event()

    @app.task(name="slow")
    def slow() -> None:
        assert go_on.wait(WAIT_S)
        ran.append(-1)

    @app.task(name="quick")
    def quick(number: int) -> None:
        ran.append(number)

    app.configure(drain_timeout_s=0.0)  # that of signals
    slow.delay()
    quick.map([(number,) for number in range(100)])
    codes: list[int] = []

    def run(worker: Worker) -> None:
        codes.append(worker.run())

    for lives in range(30):
        worker = Worker(app, WorkerOptions("default", concurrency=2))
        worker.recycle_at(None, 10)
        thread = threading.Thread(target=run, args=[worker])
        thread.start()
        wait_until(partial(getattr, worker, "why_recycled"), "it had enough")
        if lives == 0:
            assert thread.is_alive()
            assert not worker.ready().ok
            go_on.set()
        thread.join(WAIT_S)
        if len(ran) == 101:
            break
    assert set(codes) == {EXIT_RECYCLE}
    assert sorted(ran) == list(range(-1, 100))


@pytest.mark.parametrize(
    ("timeout", "is_stopped", "code"),
    [
        pytest.param(None, True, 0, id="a signal while it waits is the first"),
        pytest.param(0.2, False, EXIT_RECYCLE, id="what is over its time and can't be stopped is not waited for"),
    ],
)
def test_what_is_stuck_does_not_hold_it_up_for_ever(app: TaskQ, timeout: float | None, is_stopped: bool, code: int):
    @app.task(name="stuck", timeout=timeout)
    def stuck() -> None:
        threading.Event().wait(WAIT_S)

    @app.task(name="quick")
    def quick() -> None: ...

    app.configure(drain_timeout_s=0.1)
    stuck.delay()
    quick.delay()
    worker = Worker(app, WorkerOptions("default", concurrency=2))
    worker.recycle_at(None, 1)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()))
    thread.start()
    wait_until(lambda: worker.why_recycled, "it had enough")
    if is_stopped:
        worker.stop()
    thread.join(WAIT_S)
    assert codes == [code]
