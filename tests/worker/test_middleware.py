"""What is around running in a worker: every attempt, on threads and loop, and what its errors become."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio.lowlevel

from taskq import Invocation, Middleware, Reject, Retry, TaskQ, current
from tests.processes import wait_until
from tests.worker.test_retries import dead_letters, executions, told
from tests.working import wait_finished, working


class Noting(Middleware):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any:
        self.notes.append(f"{invocation.task.name} {invocation.attempt} starts")
        assert current.id == invocation.id
        try:
            return call_next(invocation)
        except OSError as error:
            self.notes.append(f"{invocation.task.name} {invocation.attempt} raises {error}")
            raise

    async def arun(self, invocation: Invocation, call_next: Callable[[Invocation], Awaitable[Any]], /) -> Any:
        self.notes.append(f"{invocation.task.name} {invocation.attempt} starts")
        await anyio.lowlevel.checkpoint()
        assert current.id == invocation.id
        try:
            return await call_next(invocation)
        except OSError as error:
            self.notes.append(f"{invocation.task.name} {invocation.attempt} raises {error}")
            raise


class Refusing(Middleware):
    def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any:
        raise Reject("not today")

    async def arun(self, invocation: Invocation, call_next: Callable[[Invocation], Awaitable[Any]], /) -> Any:
        raise Reject("not today")


def test_it_is_around_every_attempt_and_sees_errors(app: TaskQ, backend: str) -> None:
    noting = Noting()
    app.add_middleware(noting)

    @app.task(name="thread", retry=Retry(1, base=0), timeout=60)
    def in_thread(number: int, *, loud: bool = False) -> None:
        if current.attempt == 1:
            raise OSError("no")

    @app.task(name="loop", retry=Retry(1, base=0))
    async def on_loop(number: int) -> None:
        if current.attempt == 1:
            raise OSError("no")

    in_thread.delay(1, loud=True)
    on_loop.delay(1)
    with working(app, backend) as worker:
        wait_finished(worker)
    assert sorted(noting.notes) == [
        f"{name} {what}" for name in ("loop", "thread") for what in ("1 raises no", "1 starts", "2 starts")
    ]
    assert dead_letters(app) == []


def test_one_that_does_not_run_the_task_skips_it(app: TaskQ, backend: str) -> None:
    class Skipping(Middleware):
        def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any: ...

    app.add_middleware(Skipping())
    ran: list[int] = []

    @app.task
    def work() -> None:
        ran.append(1)

    with working(app, backend) as worker:
        counts = executions(worker.metrics_snapshot, work.name)
        work.delay()
        wait_until(lambda: counts("done") == 1, "it counts as done")
    assert ran == []


def test_its_error_is_how_the_attempt_ended(app: TaskQ, backend: str) -> None:
    app.add_middleware(Refusing())
    ran: list[int] = []

    @app.task
    def in_thread() -> None:
        ran.append(1)

    @app.task
    async def on_loop() -> None:
        ran.append(2)

    in_thread.delay()
    on_loop.delay()
    with working(app, backend) as worker:
        wait_finished(worker)
    assert ran == []
    assert [(told(letter)["reason"], told(letter)["message"]) for letter in dead_letters(app)] == [
        ("rejected", "not today")
    ] * 2
