"""The gates in virtual time, with runners that begin and end when told; and limits over several workers."""

from __future__ import annotations

import gc
import math
import time
from collections import Counter, deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from taskq import Retry, TaskQ, current
from taskq.broker.port import Record, TopicPartition
from taskq.config import load_settings
from taskq.decorators import Task
from taskq.message import Envelope
from taskq.metrics import metrics
from taskq.worker.dispatch import Dispatch, give_gates, priorities_of
from taskq.worker.gates import BatchGate, Ticket
from taskq.worker.progress import Progress
from taskq.worker.work import Crew, Feed, Item, Job, Work, enqueue
from tests.processes import wait_until
from tests.working import wait_finished, working


class Runners(Crew):
    """A crew of `size` whose time is told it; each item takes what `seconds` says of its task."""

    def __init__(self, size: int, seconds: dict[str, float]) -> None:
        self.queue: deque[Item] = deque()
        self.size = size
        self.seconds = seconds
        self.runs: list[tuple[float, Item]] = []
        self.starts: list[tuple[float, Item]] = []

    def submit(self, items: list[Item], at: int | None = None) -> None:
        enqueue(self.queue, items, at)

    def running(self) -> list[Item]:
        return [item for _, item in self.runs]

    def cancel_run(self, item: Item) -> None:
        raise AssertionError("nothing is cancelled here")

    def work(self, now: float) -> None:
        for until, item in [run for run in self.runs if run[0] <= now]:
            self.runs.remove((until, item))
            item[3].finish(item[2].offset)
        while self.queue and len(self.runs) < self.size:
            item = self.queue.popleft()
            self.starts.append((now, item))
            self.runs.append((now + self.seconds[item[0].task.name], item))


class Bench:
    """A dispatch between records that are given it and runners, all in virtual time."""

    def __init__(self, tasks: list[Task[Any, Any]], size: int = 2) -> None:
        self.jobs = {task.name: Job(task, "g", metrics) for task in tasks}
        self.seconds = dict.fromkeys(self.jobs, 0.0)
        self.crew = Runners(size, self.seconds)
        self.feed = Feed(1, lambda: None)
        priorities = priorities_of(self.jobs.values())
        once = BatchGate(size, lambda tickets: True, priorities)
        gates = give_gates(self.jobs.values(), once, lambda: 1.0, priorities)
        self.dispatch = Dispatch(self.feed, gates, priorities, 8192)
        for job in self.jobs.values():
            job.crew = self.crew
        self.dispatch.start([self.crew])
        self.works: dict[str, Work] = {}
        # Whole, and its steps of a power of two, so that adding is exact however long the machine has been up.
        self.now = self.began = float(math.floor(time.monotonic()))

    def add(self, task: Task[Any, Any], count: int, topic: str = "default") -> None:
        work = self.works.setdefault(topic, Work(TopicPartition(topic, 0), Progress(0)))
        job, items = self.jobs[task.name], []
        for _ in range(count):
            record, envelope = Record(work.end, 0, None, b"", ()), Envelope(name=task.name, id=bytes(16))
            work.end += 1
            work.handed_out += 1
            item: Item = (job, envelope, record, work)
            if job.gates:
                ticket = Ticket(work, work, job.gates, self.feed.free)
                item = ticket.item = (job, envelope, record, ticket)
            items.append(item)
        self.dispatch.add(items)

    def run(self, seconds: float, step_s: float = 1 / 256) -> None:
        until = self.now + seconds
        while self.now < until:
            self.dispatch.turn(self.now)
            self.crew.work(self.now)
            self.now += step_s

    def starts(self, task: Task[Any, Any]) -> list[float]:
        """When its invocations began, since the beginning."""
        return [at - self.began for at, item in self.crew.starts if item[0].task is task]


def most_in_a_second(starts: list[float]) -> int:
    return max(sum(start <= other < start + 1 for other in starts) for start in starts)


@pytest.fixture
def plain_app() -> TaskQ:
    return TaskQ("test", broker="memory:")


@pytest.mark.parametrize(("rate", "size"), [(20, 2), (20, 100), (200, 8)])
def test_a_pause_of_all_runners_is_not_followed_by_a_flood(plain_app: TaskQ, rate: int, size: int) -> None:
    limited = plain_app.task(name="limited", rate_limit=rate)(lambda: None)
    busy = plain_app.task(name="busy")(lambda: None)
    bench = Bench([limited, busy], size)
    bench.seconds["busy"] = 4.0
    bench.add(busy, size)
    bench.run(0.02)
    bench.add(limited, 2000)
    bench.run(10)
    starts = bench.starts(limited)
    assert min(starts) >= 4
    assert most_in_a_second(starts) <= 1.1 * rate + 1
    assert len(starts) == pytest.approx(6 * rate, rel=0.1)


def test_one_that_holds_the_only_place_saves_no_starts_for_later(plain_app: TaskQ) -> None:
    limited = plain_app.task(name="limited", rate_limit="20/s", concurrency=1)(lambda: None)
    bench = Bench([limited], 4)
    bench.seconds["limited"] = 4.0
    bench.add(limited, 200)
    bench.run(1)
    bench.seconds["limited"] = 0.0
    bench.run(9)
    starts = bench.starts(limited)
    assert most_in_a_second(starts) <= 23
    assert len(starts) == pytest.approx(1 + 6 * 20, rel=0.1)


def test_a_rate_is_reached_whatever_another_crew_has_to_start(plain_app: TaskQ) -> None:
    limited = plain_app.task(name="limited", rate_limit="20/s")(lambda: None)
    slow = plain_app.task(name="slow")(lambda: None)
    elsewhere = plain_app.task(name="elsewhere", rate_limit="1000/s")(lambda: None)
    bench = Bench([limited, slow, elsewhere], 16)
    other = Runners(100, bench.seconds)
    bench.jobs["elsewhere"].crew = other
    bench.dispatch.start([bench.crew, other])
    bench.seconds |= {"slow": 0.1, "limited": 0.01, "elsewhere": 0.2}
    bench.add(slow, 8000)
    bench.add(limited, 1000)
    bench.add(elsewhere, 8000)
    for _ in range(20 * 256):
        bench.run(1 / 256)
        other.work(bench.now)
    assert len(bench.starts(limited)) == pytest.approx(20 * 20, rel=0.1)
    assert len(bench.starts(slow)) >= 20 * 140


@pytest.mark.parametrize("slow_s", [0.05, 0.1, 0.12])
def test_a_rate_is_reached_while_the_runners_have_much_else_to_do_and_that_goes_on(plain_app: TaskQ, slow_s: float):
    """What is let through must not wait behind thousands that were queued before: few are, so few would start.

    Runners that began together end together, so that none is free for as long as one takes.
    """
    limited = plain_app.task(name="limited", rate_limit="20/s")(lambda: None)
    slow = plain_app.task(name="slow")(lambda: None)
    bench = Bench([limited, slow], 16)
    bench.seconds |= {"slow": slow_s, "limited": 0.01}
    bench.add(slow, 8000)
    bench.add(limited, 1000)
    bench.run(20)
    assert len(bench.starts(limited)) == pytest.approx(20 * 20, rel=0.1)
    assert len(bench.starts(slow)) >= 20 * 14 / slow_s


def test_who_waits_for_nothing_has_half_of_the_runners_at_least(plain_app: TaskQ) -> None:
    limited = plain_app.task(name="limited", rate_limit="1000/s")(lambda: None)
    other = plain_app.task(name="other")(lambda: None)
    bench = Bench([limited, other], 4)
    bench.seconds |= {"other": 0.1, "limited": 0.1}  # forty a second in all, far less than the limit
    bench.add(other, 8000)
    bench.add(limited, 8000)
    bench.run(50)
    assert len(bench.starts(other)) >= 900
    assert len(bench.starts(limited)) >= 300


@pytest.mark.parametrize("limits", [{"concurrency": 1}, {"rate_limit": "100/s"}, {"at_most_once": True}])
def test_priorities_hold_at_a_limit(plain_app: TaskQ, limits: dict[str, object]) -> None:
    task = plain_app.task(name="work", topic="feed", priority="normal", **limits)(lambda: None)  # type: ignore[call-overload]
    bench = Bench([task], 4)
    bench.seconds["work"] = 0.01
    bench.add(task, 3000, "feed.low")
    bench.run(0.5)
    before = len(bench.crew.starts)
    bench.add(task, 500, "feed")
    bench.add(task, 500, "feed.high")
    bench.run(3)
    counted = Counter(item[3].tp.topic for _, item in bench.crew.starts[before : before + 200])
    assert counted["feed.high"] == pytest.approx(120, abs=40)
    assert counted["feed"] == pytest.approx(60, abs=25)
    assert counted["feed.low"] >= 15


def test_what_could_not_be_stored_keeps_its_place(plain_app: TaskQ) -> None:
    is_full, seen = [True], []

    def before(tickets: list[Ticket]) -> bool:
        seen.append([ticket.item[2].offset for ticket in tickets])
        return not is_full[0]

    bench = Bench([task := plain_app.task(name="once", at_most_once=True)(lambda: None)], 3)
    (gate,) = bench.jobs["once"].gates
    assert isinstance(gate, BatchGate)
    gate._before = before
    bench.add(task, 4)
    bench.run(0.1)
    is_full[0] = False
    bench.run(1)
    assert seen == [[0, 1, 2], [0, 1, 2], [3]]


def test_a_worker_that_holds_only_an_events_partitions_has_its_share_of_a_rate(tmp_path: Path) -> None:
    ran: list[int] = []
    with TaskQ("test", settings=load_settings(broker=str(tmp_path), partitions=1)) as app, ExitStack() as stack:
        happened = app.event("happened", topic="events")

        @happened.subscribe
        @app.task(topic="own", rate_limit="100/s")
        def handler(number: int) -> None:
            ran.append(number)

        workers = [stack.enter_context(working(app)) for _ in range(3)]
        wait_until(lambda: all(len(worker._poller.works) == 1 for worker in workers), "each holds one of three")
        assert sum(worker._poller._part() for worker in workers) == pytest.approx(1)
        for number in range(3):
            happened.publish(number=number)
            handler.delay(number)
            handler.options(topic="events").delay(number)
        wait_until(lambda: len(ran) == 9, "all have run")
        wait_finished(workers[0])


def test_what_waits_at_gates_is_bounded_in_bytes(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.worker.throttle.BYTES_MAX", 4_000_000)

    @app.task(rate_limit="1/m", topic="slow")
    def waits(text: str) -> None: ...

    done: list[int] = []

    @app.task(topic="quick")
    def quick() -> None:
        done.append(1)

    for _ in range(6):
        waits.map([("x" * 250_000,)] * 20)
    with working(app) as worker:
        works = worker._poller.works
        slow = [TopicPartition("slow", number) for number in range(8)]
        wait_until(lambda: all(tp in works and works[tp].is_stalled for tp in slow), "enough waits in each partition")
        held = sum(work.handed_out_bytes for work in works.values())
        assert not app.broker.url.startswith("file:") or held < 15_000_000  # a fetch more in each, at most
        quick.delay()
        wait_until(lambda: done, "others are not held up")


def test_what_has_ended_is_freed_at_once_and_needs_no_collection_of_garbage(app: TaskQ) -> None:
    """What goes round in circles does: a worker collects garbage seldom, and it would look like a leak."""

    @app.task(order="key", key=lambda number: str(number % 7), concurrency=2, retry=Retry(1, base=0.001))
    def ordered(number: int) -> None:
        if number % 5 == 0 and current.attempt == 1:
            raise ValueError

    def tickets() -> int:
        return sum(isinstance(one, Ticket) for one in gc.get_objects())

    with working(app, concurrency=4) as worker:
        gc.collect()
        gc.disable()
        try:
            ordered.map([(number,) for number in range(200)])
            wait_finished(worker)
            wait_until(lambda: tickets() <= 2 * 4, "hardly more tickets are left than runners, who keep their last")
        finally:
            gc.enable()
