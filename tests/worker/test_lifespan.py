"""What a worker opens before it runs anything and closes after the drain, and what becomes of it when that fails."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
import sniffio

import taskq
from taskq import TaskQ
from taskq.errors import ConfigError
from taskq.worker import Worker, WorkerOptions
from taskq.worker.link import EXIT_RECYCLE
from tests.processes import WAIT_S, wait_until
from tests.working import wait_finished, working


def run_in_thread(worker: Worker) -> tuple[threading.Thread, list[int]]:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(worker.run()))
    thread.start()
    return thread, codes


def members(app: TaskQ) -> int:
    return len(app.broker.admin().describe_group("default").members)


def test_it_is_open_while_anything_runs_in_order(app: TaskQ, backend: str) -> None:
    said: list[str] = []

    @app.lifespan
    async def first(app: TaskQ) -> AsyncIterator[None]:
        app.state.library = sniffio.current_async_library()
        said.append("open first")
        yield
        said.append("close first")

    @app.lifespan
    @asynccontextmanager
    async def second(app: TaskQ) -> AsyncIterator[None]:
        said.append("open second")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            group.cancel_scope.cancel()
        said.append("close second")

    @app.task
    def in_thread() -> None:
        said.append(f"run {app.state.library}")

    @app.task
    async def on_loop() -> None:
        said.append(f"run {app.state.library}")

    in_thread.options(delay=0.05).delay()
    on_loop.delay()
    with working(app, backend) as worker:
        wait_until(lambda: len(said) == 4, "both ran, what was delayed too")
        wait_finished(worker)
    opened, closed = ["open first", "open second"], ["close second", "close first"]
    assert said == [*opened, f"run {backend}", f"run {backend}", *closed]
    assert members(app) == 0


def test_it_closes_after_what_runs_has_ended(app: TaskQ, backend: str) -> None:
    said: list[str] = []
    started, go_on = threading.Event(), threading.Event()

    @app.lifespan
    async def life(app: TaskQ) -> AsyncIterator[None]:
        yield
        said.append("closed")

    @app.task
    def in_thread() -> None:
        started.set()
        go_on.wait(WAIT_S)
        said.append("ran")

    in_thread.delay()
    worker = Worker(app, WorkerOptions("default", backend))
    thread, codes = run_in_thread(worker)
    assert started.wait(WAIT_S)
    worker.stop()
    go_on.set()
    thread.join(WAIT_S)
    assert (codes, said) == ([0], ["ran", "closed"])


def test_what_fails_at_the_start_ends_the_worker_before_it_has_taken_anything(
    app: TaskQ, backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    said: list[str] = []

    @app.lifespan
    async def fine(app: TaskQ) -> AsyncIterator[None]:
        try:
            yield
        finally:
            said.append("closed all the same")

    @app.lifespan
    async def broken(app: TaskQ) -> AsyncIterator[None]:
        said.append(f"{members(app)} members")
        raise OSError("no database")
        yield

    @app.task
    async def nothing() -> None:
        said.append("ran")

    nothing.delay()
    worker = Worker(app, WorkerOptions("default", backend))
    assert worker.describe().topics[0][0] == "default"
    assert worker.run() == 1
    assert said == ["0 members", "closed all the same"]
    assert members(app) == 0
    assert not worker.health().ok
    [record] = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert record.getMessage() == "the lifespan of the app test failed at its start; nothing has run: no database"
    assert record.exc_info


def test_what_fails_at_the_end_is_logged_and_counts(app: TaskQ, backend: str, caplog: pytest.LogCaptureFixture) -> None:
    ran: list[int] = []

    @app.lifespan
    async def broken(app: TaskQ) -> AsyncIterator[None]:
        yield
        raise OSError("can't flush")

    @app.task
    def note() -> None:
        ran.append(1)

    note.delay()
    worker = Worker(app, WorkerOptions("default", backend))
    thread, codes = run_in_thread(worker)
    wait_finished(worker)
    worker.stop()
    thread.join(WAIT_S)
    assert (ran, codes) == ([1], [1])
    assert "the lifespan of the app test failed at its end: can't flush" in caplog.text


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_background_task_of_it_that_fails_ends_the_worker(
    app: TaskQ, backend: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    fail = threading.Event()

    async def background() -> None:
        await anyio.to_thread.run_sync(fail.wait, WAIT_S)
        raise OSError("lost the connection")

    @app.lifespan
    async def life(app: TaskQ) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(background)
            yield

    if kind == "def":

        @app.task
        def nothing() -> None: ...
    else:

        @app.task
        async def nothing_async() -> None: ...

    worker = Worker(app, WorkerOptions("default", backend))
    thread, codes = run_in_thread(worker)
    wait_until(lambda: worker.ready().ok, "it works")
    fail.set()
    thread.join(WAIT_S)
    assert codes == [1]
    [critical] = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert critical.startswith("the lifespan of the app test failed while the worker ran")
    assert "lost the connection" in caplog.text


def test_a_worker_that_is_told_to_stop_while_it_opens_waits_and_closes(app: TaskQ, backend: str) -> None:
    opening, go_on = threading.Event(), threading.Event()
    said: list[str] = []

    @app.lifespan
    async def slow(app: TaskQ) -> AsyncIterator[None]:
        opening.set()
        await anyio.to_thread.run_sync(go_on.wait, WAIT_S)
        yield
        said.append("closed")

    @app.task
    def nothing() -> None:
        said.append("ran")

    nothing.delay()
    worker = Worker(app, WorkerOptions("default", backend))
    thread, codes = run_in_thread(worker)
    assert opening.wait(WAIT_S)
    assert not worker.ready().ok
    assert worker.health().ok
    worker.stop()
    go_on.set()
    thread.join(WAIT_S)
    assert (codes, said) == ([0], ["closed"])


@pytest.mark.parametrize("stage", ["opening", "closing"])
def test_a_worker_that_is_told_twice_waits_no_longer(app: TaskQ, backend: str, stage: str) -> None:
    hangs = threading.Event()

    @app.lifespan
    async def hanging(app: TaskQ) -> AsyncIterator[None]:
        if stage == "opening":
            hangs.set()
            await anyio.sleep_forever()
        yield
        hangs.set()
        await anyio.sleep_forever()

    @app.task
    def nothing() -> None: ...

    worker = Worker(app, WorkerOptions("default", backend))
    thread, codes = run_in_thread(worker)
    if stage == "closing":
        wait_until(lambda: worker.ready().ok, "it works")
        worker.stop()
    assert hangs.wait(WAIT_S)
    worker.stop()
    worker.stop()
    thread.join(WAIT_S)
    assert codes == [1]


def test_a_second_stop_while_something_runs_ends_a_closing_that_hangs(app: TaskQ, backend: str) -> None:
    started, go_on, closing = threading.Event(), threading.Event(), threading.Event()

    @app.lifespan
    async def hanging(app: TaskQ) -> AsyncIterator[None]:
        yield
        closing.set()
        await anyio.sleep_forever()

    @app.task
    def slow() -> None:
        started.set()
        go_on.wait(WAIT_S)

    slow.delay()
    worker = Worker(app, WorkerOptions("default", backend))
    thread, codes = run_in_thread(worker)
    assert started.wait(WAIT_S)
    worker.stop()
    worker.stop()
    thread.join(WAIT_S)
    go_on.set()
    assert closing.is_set()
    assert codes == [1]


def test_two_stops_before_it_began_end_an_opening_that_hangs(app: TaskQ, backend: str) -> None:
    @app.lifespan
    async def hanging(app: TaskQ) -> AsyncIterator[None]:
        await anyio.sleep_forever()
        yield

    @app.task
    def nothing() -> None: ...

    worker = Worker(app, WorkerOptions("default", backend))
    worker.stop()
    worker.stop()
    thread, codes = run_in_thread(worker)
    thread.join(WAIT_S)
    assert codes == [1]


@pytest.mark.parametrize("how", ["a scope that ends", "a group that is cancelled", "an error that is swallowed"])
def test_one_that_ends_while_the_worker_runs_ends_it_and_is_told(
    app: TaskQ, backend: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    end = threading.Event()

    @app.lifespan
    async def ends(app: TaskQ) -> AsyncIterator[None]:
        if how == "an error that is swallowed":
            with suppress(Exception):
                yield
            return
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as inner:
                scope = inner if how == "a scope that ends" else group.cancel_scope

                async def wait() -> None:
                    await anyio.to_thread.run_sync(end.wait, WAIT_S)
                    scope.cancel()

                group.start_soon(wait)
                yield

    @app.task
    def nothing() -> None: ...

    worker = Worker(app, WorkerOptions("default", backend))
    if how == "an error that is swallowed":

        def fail() -> None:
            raise RuntimeError("can't start new thread")

        worker._threads.start = fail  # type: ignore[method-assign]
    thread, codes = run_in_thread(worker)
    if how != "an error that is swallowed":
        wait_until(lambda: worker.ready().ok, "it works")
        end.set()
    thread.join(WAIT_S)
    assert codes == [1]
    [critical] = [record.getMessage() for record in caplog.records if record.levelno == logging.CRITICAL]
    assert critical.startswith("the lifespan of the app test ended while the worker ran")
    assert not worker.health().ok


@pytest.mark.parametrize("why", ["stopped", "replaced"])
def test_a_worker_that_closes_in_order_is_well_and_not_ready(app: TaskQ, backend: str, why: str) -> None:
    closing, go_on = threading.Event(), threading.Event()

    @app.lifespan
    async def slow(app: TaskQ) -> AsyncIterator[None]:
        yield
        closing.set()
        await anyio.to_thread.run_sync(go_on.wait, WAIT_S)

    @app.task
    def nothing() -> None: ...

    worker = Worker(app, WorkerOptions("default", backend))
    thread, codes = run_in_thread(worker)
    wait_until(lambda: worker.ready().ok, "it works")
    worker.stop() if why == "stopped" else worker._recycle("it has had enough")
    assert closing.wait(WAIT_S)
    assert worker.health().ok
    assert worker.ready().reasons == ("it is closing",)
    go_on.set()
    thread.join(WAIT_S)
    assert codes == [0 if why == "stopped" else EXIT_RECYCLE]


def test_tests_and_others_open_it_too(app: TaskQ, backend: str) -> None:
    @app.lifespan
    async def life(app: TaskQ) -> AsyncIterator[None]:
        app.state.open = True
        yield
        app.state.open = False

    async def main() -> None:
        async with app.open_lifespan():
            assert app.state.open
        assert not app.state.open

    anyio.run(main, backend=backend)


def test_what_can_be_no_lifespan_is_refused() -> None:
    app = TaskQ("test", broker="memory:")

    async def returns(app: TaskQ) -> None: ...

    def generates(app: TaskQ) -> object:
        yield

    async def wants_more(app: TaskQ, more: int) -> AsyncIterator[None]:
        yield

    for wrong, message in (
        (returns, "yields once"),
        (generates, "yields once"),
        (7, "yields once"),
        (wants_more, "with the app and nothing else"),
    ):
        with pytest.raises(ConfigError, match=message):
            app.lifespan(wrong)  # type: ignore[type-var]
    assert not app.has_lifespan


def test_the_default_app_has_one_too() -> None:
    assert taskq.lifespan == taskq.default_app.lifespan
