"""Context variables: each invocation finds those that the lifespan has set, and none of another's."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from taskq import Retry, TaskQ, current
from tests.processes import WAIT_S, wait_until
from tests.working import wait_finished, working

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
own: ContextVar[str] = ContextVar("own", default="nothing")


@pytest.fixture(params=["with a lifespan", "without"])
def found(app: TaskQ, request: pytest.FixtureRequest) -> str:
    """What invocations find in `tenant`."""
    if request.param == "without":
        return "nobody"

    @app.lifespan
    async def life(app: TaskQ) -> AsyncIterator[None]:
        tenant.set("all")
        yield

    return "all"


def look(seen: list[tuple[str, str]]) -> None:
    """Note what is there, and leave something else."""
    seen.append((tenant.get(), own.get()))
    assert current.id
    if current.attempt % 2:
        tenant.set(current.id)
    else:
        own.set(current.id)


@pytest.mark.parametrize("declared", [{}, {"timeout": 60}], ids=["plain", "limited"])
def test_an_invocation_finds_nothing_of_the_one_before(
    app: TaskQ, backend: str, found: str, declared: dict[str, Any]
) -> None:
    in_threads: list[tuple[str, str]] = []
    on_loop: list[tuple[str, str]] = []

    @app.task(retry=Retry(1, base=0), **declared)
    def in_thread() -> None:
        look(in_threads)
        if current.attempt == 1:
            raise OSError("with variables set")

    @app.task(retry=Retry(1, base=0), **declared)
    async def on_the_loop(waits: bool) -> None:
        look(on_loop)
        if waits:
            await anyio.lowlevel.checkpoint()
        if current.attempt == 1:
            raise OSError("with variables set")

    in_thread.map([()] * 10)
    on_the_loop.map([(number % 2 == 0,) for number in range(10)])
    with working(app, backend, concurrency=1) as worker:
        wait_finished(worker)
    assert in_threads == on_loop == [(found, "nothing")] * 20


def test_nor_of_one_that_was_cancelled(app: TaskQ, backend: str, found: str) -> None:
    seen: list[tuple[str, str]] = []

    @app.task
    async def stays() -> None:
        look(seen)
        await anyio.sleep_forever()

    @app.task
    async def next_one() -> None:
        look(seen)

    with working(app, backend, concurrency=1) as worker:
        handle = stays.delay()
        wait_until(lambda: len(seen) == 1, "it runs")
        handle.cancel()
        next_one.delay()
        wait_until(lambda: len(seen) == 2, "the next one runs")
        wait_finished(worker)
    assert seen == [(found, "nothing")] * 2


def test_a_thread_in_the_place_of_one_that_may_never_end_finds_them_too(app: TaskQ, found: str) -> None:
    seen: list[tuple[str, str]] = []
    go_on = threading.Event()

    @app.task(timeout=0.05)
    def long() -> None:
        look(seen)
        go_on.wait(WAIT_S)

    @app.task
    def short() -> None:
        look(seen)

    with working(app, concurrency=1) as worker:
        long.delay()
        wait_until(lambda: len(seen) == 1, "it runs")
        short.delay()
        wait_until(lambda: len(seen) == 2, "another thread runs the other")
        go_on.set()
        wait_finished(worker)
    assert seen == [(found, "nothing")] * 2


def test_a_thread_is_not_on_the_loop_for_that(app: TaskQ, backend: str, found: str) -> None:
    async def main() -> str:
        return tenant.get()

    seen: list[str] = []

    @app.task
    def work() -> None:
        seen.append(anyio.run(main))

    work.delay()
    with working(app, backend) as worker:
        wait_finished(worker)
    assert seen == [found]


def test_one_that_leaves_nothing_behind_costs_its_runner_nothing(app: TaskQ, backend: str, found: str) -> None:
    tasks: set[int] = set()

    @app.task
    async def tidy(number: int) -> None:
        tasks.add(anyio.get_current_task().id)
        token = own.set("mine")
        await anyio.lowlevel.checkpoint()
        own.reset(token)

    tidy.map([(number,) for number in range(10)])
    with working(app, backend, concurrency=1) as worker:
        wait_finished(worker)
    assert len(tasks) == 1
