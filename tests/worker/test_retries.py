"""What becomes of invocations that fail: tried again when it is time, with their history, or given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from taskq import Reject, Retry, TaskQ, current
from taskq.broker.port import Message, Record, TopicPartition
from taskq.errors import ConfigError
from taskq.trip import Trip, trip_of
from taskq.worker import Worker
from taskq.worker.retries import decide
from tests.processes import wait_until
from tests.working import unfinished, wait_finished, working


def dead_letters(app: TaskQ, group: str = "default") -> list[Record]:
    topic = f"{group}.dead"
    if topic not in app.broker.admin().topics():
        return []
    reader, count = app.broker.reader(), app.broker.admin().partitions(topic)
    return [record for number in range(count) for record in reader.read(TopicPartition(topic, number), 0)]


def told(record: Record) -> dict[str, str]:
    return {name.removeprefix("taskq-dead-"): value.decode(errors="replace") for name, value in record.headers}


def test_retry_five_means_six_attempts(app: TaskQ, backend: str) -> None:
    attempts: list[tuple[str, int]] = []

    @app.task(retry=Retry(5, base=0))
    def in_thread() -> None:
        attempts.append((current.id, current.attempt))
        raise OSError("no")

    @app.task(retry=Retry(5, base=0))
    async def on_loop() -> None:
        attempts.append((current.id, current.attempt))
        raise OSError("no")

    ids = [in_thread.delay().id, on_loop.delay().id]
    with working(app, backend) as worker:
        wait_until(lambda: len(dead_letters(app)) == 2, "both are given up")
        wait_finished(worker)
    assert sorted(attempts) == sorted((ident, n) for ident in ids for n in range(1, 7))
    for letter in dead_letters(app):
        assert told(letter)["reason"] == "failed"
        trip = trip_of(letter)
        assert (trip.attempts, trip.failures) == (6, 6)
        assert [past.attempt for past in trip.errors] == [1, 2, 3, 4, 5, 6]
        assert {past.type for past in trip.errors} == {"OSError"}
        assert trip.origin is not None
        assert trip.origin[0] == "default"


def test_what_succeeds_at_last_is_done_once(app: TaskQ, backend: str) -> None:
    @app.task(retry=Retry(5, base=0.01))
    async def third_time() -> None:
        if current.attempt < 3:
            raise OSError("not yet")

    third_time.map([()] * 20)
    with working(app, backend) as worker:
        counts = executions(worker.metrics_snapshot, third_time.name)
        wait_until(lambda: counts("done") == 20, "all are done")
        assert (counts("retried"), counts("dead")) == (40, 0)
        wait_finished(worker)
    assert dead_letters(app) == []


def executions(snapshot: Callable[[], dict[str, list[tuple[tuple[str, ...], list[float]]]]], task: str):
    """Counts of outcomes from now on."""

    def count() -> dict[str, float]:
        series = snapshot().get("taskq_executions_total", [])
        return {labels[2]: numbers[0] for labels, numbers in series if labels[1] == task}

    before = count()
    return lambda outcome: count().get(outcome, 0) - before.get(outcome, 0)


def test_the_policy_says_for_which_errors(app: TaskQ) -> None:
    attempts: list[str] = []

    @app.task(retry=Retry(2, base=0, on=(OSError,), not_on=(FileNotFoundError,)))
    def fails(kind: str) -> None:
        attempts.append(kind)
        raise {"os": OSError, "missing": FileNotFoundError, "value": ValueError, "reject": Reject}[kind]("no")

    for kind in ("os", "missing", "value", "reject"):
        fails.delay(kind)
    with working(app) as worker:
        wait_until(lambda: len(dead_letters(app)) == 4, "all are given up")
        wait_finished(worker)
    assert {kind: attempts.count(kind) for kind in attempts} == {"os": 3, "missing": 1, "value": 1, "reject": 1}


def test_later_is_no_failure_and_needs_no_policy(app: TaskQ, backend: str) -> None:
    started: list[float] = []

    @app.task
    async def polls() -> None:
        started.append(time.time())
        if current.attempt < 4:
            raise Retry.later(0.05)

    polls.delay()
    with working(app, backend) as worker:
        wait_until(lambda: len(started) == 4, "it ran four times")
        wait_finished(worker)
    assert all(after - before >= 0.05 for before, after in pairwise(started))
    assert dead_letters(app) == []


def test_the_app_has_a_policy_for_all_its_tasks() -> None:
    attempts: list[str] = []
    with TaskQ("test", broker="memory:", retry=Retry(1, base=0)) as app:

        @app.task
        def as_the_app() -> None:
            attempts.append("app")
            raise ValueError

        @app.task(retry=Retry(0))
        def never() -> None:
            attempts.append("never")
            raise ValueError

        @app.task(at_most_once=True)
        def once() -> None:
            attempts.append("once")
            raise ValueError

        for task in (as_the_app, never, once):
            task.delay()
        with working(app) as worker:
            wait_until(lambda: len(dead_letters(app)) == 3, "all are given up")
            wait_finished(worker)
    assert sorted(attempts) == ["app", "app", "never", "once"]


def test_a_retry_that_waits_leaves_the_worker_free(app: TaskQ) -> None:
    ran = threading.Event()

    @app.task(retry=Retry(1, base=3600, cap=3600))
    def fails() -> None:
        raise ValueError

    @app.task
    def other() -> None:
        ran.set()

    fails.map([()] * 10)
    with working(app, concurrency=1) as worker:
        wait_finished(worker)
        other.delay()
        wait_until(ran.is_set, "the worker is free")
        assert sum(app.broker.admin().describe_topic("__taskq.delay.1024").partitions[n].end for n in range(2)) == 10


def test_only_the_handler_of_an_event_that_failed_runs_again(app: TaskQ) -> None:
    ran: list[tuple[str, int]] = []
    happened = app.event("happened")

    @happened.subscribe
    def sound(number: int) -> None:
        ran.append(("sound", current.attempt))

    @app.task(retry=Retry(2, base=0))
    def broken(number: int) -> None:
        ran.append(("broken", current.attempt))
        raise ValueError

    happened.subscribe(broken)
    ident = happened.publish(number=1).id
    with working(app) as worker:
        wait_until(lambda: len(dead_letters(app)) == 1, "one is given up")
        wait_finished(worker)
    assert sorted(ran) == [("broken", 1), ("broken", 2), ("broken", 3), ("sound", 1)]
    assert trip_of(dead_letters(app)[0]).handler == broken.name
    assert ident


def test_an_invocation_without_an_id_keeps_the_one_it_is_given(app: TaskQ) -> None:
    ids: list[str] = []

    @app.task(retry=Retry(2, base=0))
    def fails() -> None:
        ids.append(current.id)
        raise ValueError

    app.producer.send("default", b'{"task": "%s"}' % fails.name.encode())
    with working(app) as worker:
        wait_until(lambda: len(dead_letters(app)) == 1, "it is given up")
        wait_finished(worker)
    assert len(ids) == 3
    assert len(set(ids)) == 1


def test_delays_grow_up_to_the_cap_and_jitter_makes_them_shorter_only() -> None:
    policy = Retry(10, base=1, factor=2, cap=10, jitter=False)
    assert [policy.delay_s(n, 0.0) for n in range(1, 7)] == pytest.approx([1, 2, 4, 8, 10, 10])
    assert Retry(2_000, base=1, factor=2, jitter=False).delay_s(2_000, 0.0) == 600
    assert Retry(5, base=2).delay_s(1, 0.0) == pytest.approx(1)
    assert Retry(5, base=2).delay_s(1, 1.0) == pytest.approx(2)
    assert Retry(5, base=0).delay_s(3, 0.5) == 0


@pytest.mark.parametrize(
    "options",
    [
        {"max": -1},
        {"max": 1.5},
        {"max": True},
        {"base": -1},
        {"factor": 0.5},
        {"cap": "1"},
        {"on": (1,)},
        {"not_on": int},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Retry"):
        Retry(**options)  # type: ignore[arg-type]


def test_a_history_is_bounded_and_keeps_the_first() -> None:
    record = Record(0, 0, None, b"", ())
    trip = Trip()
    for number in range(30):
        failure = decide(Retry(100), ValueError(f"{number}" * 1000), record, 0.5, number)
        trip = trip.after(failure.trip.errors[0], is_failure=True)
    assert (trip.attempts, len(trip.errors)) == (30, 10)
    assert trip.errors[0].message.startswith("0")
    assert all(len(past.message) <= 300 for past in trip.errors)


def refusing(worker: Worker, topics: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the broker refuse what has no key in these topics, as if somebody had them compacted."""
    send_many = worker._poller._producer.send_many

    def send(topic: str, messages: Sequence[Message]) -> None:
        if topic in topics and any(message.key is None for message in messages):
            raise ConfigError(f"topic {topic!r}: a record needs a key")
        send_many(topic, messages)

    monkeypatch.setattr(worker._poller._producer, "send_many", send)


def test_a_retry_that_is_refused_is_a_dead_letter(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[int] = []

    @app.task(retry=Retry(1, base=0))
    def fails(number: int) -> None:
        attempts.append(current.attempt)
        raise OSError("no")

    with working(app) as worker:
        refusing(worker, {"default.retry"}, monkeypatch)
        fails.map([(1,), (2,)])
        fails.options(key="k").delay(3)
        wait_until(lambda: len(dead_letters(app)) == 3, "all are given up")
        wait_finished(worker)
    assert sorted(attempts) == [1, 1, 1, 2]
    letters = {told(letter)["reason"]: letter for letter in dead_letters(app)}
    assert set(letters) == {"failed", "refused"}
    assert "a record needs a key" in told(letters["refused"])["message"]
    assert [past.message for past in trip_of(letters["refused"]).errors] == ["no"]


def test_a_dead_letter_that_is_refused_is_kept_and_the_worker_goes_on(
    app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []

    @app.task
    def fails() -> None:
        raise OSError("no")

    @app.task
    def works() -> None:
        ran.append(1)

    with working(app) as worker:
        topics = {"default.dead"}
        refusing(worker, topics, monkeypatch)
        fails.delay()
        fails.options(key="k").delay()
        wait_until(lambda: len(dead_letters(app)) == 1, "the one with a key is given up")
        works.delay()
        wait_until(lambda: ran, "others run")
        wait_until(lambda: unfinished(worker) == 1, "only that one is left")
        topics.clear()
        wait_finished(worker)
    assert len(dead_letters(app)) == 2
