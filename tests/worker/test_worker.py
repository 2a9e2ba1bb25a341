"""A whole worker inside the test's process, over every broker there is and on both event loops."""

from __future__ import annotations

import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest

from taskq import Reject, TaskQ, current
from taskq.errors import ConfigError
from taskq.worker import Worker, WorkerOptions
from tests.processes import WAIT_S, wait_until
from tests.working import wait_finished, working


def test_def_and_async_def_tasks_run_with_their_arguments(app: TaskQ, backend: str) -> None:
    seen: list[tuple[object, ...]] = []

    @app.task
    def in_thread(a: int, b: str = "b", *more: float, flag: bool = False) -> None:
        seen.append(("thread", a, b, more, flag))

    @app.task
    async def on_loop(when: UUID, names: set[str]) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(("loop", when, names))

    ident = UUID(int=7)
    in_thread.delay(1)
    in_thread.delay(2, "x", 1.5, 2.5, flag=True)
    on_loop.delay(ident, {"a", "b"})
    with working(app, backend) as worker:
        wait_finished(worker)
    seen.sort(key=lambda call: str(call[:2]))  # a set's own text tells its elements in any order
    assert seen == [
        ("loop", ident, {"a", "b"}),
        ("thread", 1, "b", (), False),
        ("thread", 2, "x", (1.5, 2.5), True),
    ]


def test_as_many_run_at_once_as_the_concurrency_says_and_no_more(app: TaskQ, backend: str) -> None:
    running, most, gate = [0], [0], threading.Event()
    lock = threading.Lock()

    def enter() -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            if running[0] == 3:
                gate.set()

    @app.task
    def in_thread() -> None:
        enter()
        gate.wait(WAIT_S)
        with lock:
            running[0] -= 1

    in_thread.map([()] * 20)
    with working(app, backend, concurrency=3) as worker:
        wait_finished(worker)
    assert most == [3]


def test_async_tasks_run_at_once_up_to_the_concurrency(app: TaskQ, backend: str) -> None:
    running, most = [0], [0]

    @app.task
    async def on_loop() -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        running[0] -= 1

    on_loop.map([()] * 40)
    with working(app, backend, concurrency=5) as worker:
        wait_finished(worker)
    assert most == [5]


def test_a_task_publishes_others_from_a_thread_and_from_the_loop(app: TaskQ, backend: str) -> None:
    done: list[int] = []

    @app.task
    def leaf(number: int) -> None:
        done.append(number)

    @app.task
    def branch() -> None:
        leaf.map([(number,) for number in range(10)])

    @app.task
    async def async_branch() -> None:
        for number in range(10, 20):
            await leaf.adelay(number)

    branch.delay()
    async_branch.delay()
    with working(app, backend) as worker:
        wait_until(lambda: len(done) == 20, "all leaves")
        wait_finished(worker)
    assert sorted(done) == list(range(20))


def test_current_tells_each_invocation_of_itself(app: TaskQ, backend: str) -> None:
    told: dict[int, tuple[str, str, str, dict[str, str]]] = {}

    @app.task(topic="feed", group="feed")
    def in_thread(number: int) -> None:
        told[number] = (current.id, current.group, current.task.name, current.headers)

    @app.task(topic="feed", group="feed")
    async def on_loop(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        told[number] = (current.id, current.group, current.task.name, current.headers)

    handles = {n: (in_thread if n % 2 else on_loop).options(headers={"n": str(n)}).delay(n) for n in range(20)}
    with working(app, backend, group="feed") as worker:
        wait_finished(worker)
    assert told == {
        n: (handle.id, "feed", (in_thread if n % 2 else on_loop).name, {"n": str(n)}) for n, handle in handles.items()
    }


def test_an_event_runs_every_handler_of_the_group(app: TaskQ, backend: str) -> None:
    seen: list[str] = []
    happened = app.event("happened")

    @happened.subscribe()
    def first(number: int) -> None:
        seen.append(f"first {number}")

    @happened.subscribe()
    async def second(number: int) -> None:
        seen.append(f"second {number}")

    @happened.subscribe(group="other")
    def elsewhere(number: int) -> None:
        seen.append(f"elsewhere {number}")

    for number in range(30):
        happened.publish(number=number)
    with working(app, backend) as worker:
        wait_finished(worker)
    assert Counter(seen) == {f"{who} {number}": 1 for who in ("first", "second") for number in range(30)}


def test_a_task_that_raises_does_not_stop_the_others(app: TaskQ, backend: str) -> None:
    done: list[int] = []

    @app.task
    def odd(number: int) -> None:
        if number % 2:
            raise ValueError(number)
        done.append(number)

    @app.task
    async def odd_async(number: int) -> None:
        if number % 2:
            raise Reject("odd")
        done.append(number)

    odd.map([(number,) for number in range(10)])
    odd_async.map([(number,) for number in range(10, 20)])
    with working(app, backend) as worker:
        wait_finished(worker)
        assert worker.metrics_snapshot()["taskq_dead_letters"] == [(("default",), [10.0])]
    assert sorted(done) == list(range(0, 20, 2))


def test_a_cancellation_that_a_task_makes_itself_is_its_failure_and_not_the_workers(app: TaskQ, backend: str) -> None:
    done: list[str] = []

    @app.task
    async def cancels() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.lowlevel.checkpoint()
        done.append("inside its own scope")
        if backend == "asyncio":
            import asyncio

            raise asyncio.CancelledError

    @app.task
    async def after() -> None:
        done.append("after")

    cancels.delay()
    with working(app, backend, concurrency=1) as worker:
        wait_finished(worker)
        after.delay()
        wait_until(lambda: "after" in done, "the runner goes on")


def test_async_tasks_that_never_wait_leave_the_loop_to_others(app: TaskQ, backend: str) -> None:
    busy, ended_at = [0], [0]

    @app.task
    async def never_waits() -> None:
        busy[0] += 1

    @app.task
    async def waits_often() -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        ended_at[0] = busy[0]

    waits_often.options(key="same").delay()
    never_waits.options(key="same").map([()] * 50_000)
    with working(app, backend, concurrency=2) as worker:
        wait_finished(worker)
    assert busy == [50_000]
    assert 0 <= ended_at[0] < 50_000


def test_a_runner_keeps_no_context_of_the_task_before(app: TaskQ) -> None:
    """`current` is each one's own, also in the callbacks that a task leaves behind."""
    ids: list[str] = []
    read: list[Callable[[], str]] = []

    @app.task
    def leaves_a_callback() -> None:
        context = contextvars.copy_context()
        ids.append(current.id)
        read.append(lambda: context.run(lambda: current.id))

    leaves_a_callback.map([()] * 10)
    with working(app, concurrency=1) as worker:
        wait_finished(worker)
    assert [callback() for callback in read] == ids


def test_readiness_follows_the_life_of_a_worker(app: TaskQ) -> None:
    @app.task
    def nothing() -> None: ...

    worker = Worker(app, WorkerOptions(group="default"))
    assert not worker.ready().ok
    thread = threading.Thread(target=worker.run)
    thread.start()
    wait_until(lambda: worker.ready().ok, "it is ready")
    assert worker.health().ok
    worker.stop()
    thread.join(WAIT_S)
    assert worker.health().ok
    assert "it is closing" in worker.ready().reasons


def test_a_group_without_handlers_is_refused_with_those_there_are(app: TaskQ) -> None:
    @app.task(group="feed")
    def nothing() -> None: ...

    with pytest.raises(ConfigError, match=r"fed.*feed"):
        Worker(app, WorkerOptions(group="fed"))


def test_an_unknown_backend_is_refused(app: TaskQ) -> None:
    @app.task
    def nothing() -> None: ...

    with pytest.raises(ConfigError, match=r"curio.*asyncio, trio"):
        Worker(app, WorkerOptions(group="default", backend="curio"))


def test_a_broker_that_fails_ends_the_worker_with_an_error(tmp_path: Path) -> None:
    """Nothing is silently no longer consumed: it ends, and whoever supervises it starts another."""
    from taskq.errors import StorageError

    with TaskQ("test", broker=str(tmp_path)) as app:

        @app.task
        def nothing() -> None: ...

        worker = Worker(app, WorkerOptions(group="default"))

        def fail(*_: object) -> None:
            raise StorageError("the disk is gone")

        worker._poller._consumer.poll = fail  # type: ignore[method-assign,assignment]
        assert worker.run() == 1
        assert worker.health().reasons == ("the poller has ended: the disk is gone",)
