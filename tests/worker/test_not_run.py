"""A task whose code has not run is not done: its call has returned a coroutine that nobody awaited, or a generator."""

from __future__ import annotations

import asyncio
import functools
import gc
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq import Invocation, Middleware, TaskQ
from tests.processes import bench
from tests.worker.test_retries import dead_letters, told
from tests.working import wait_finished, working

AWAITED = "it returned a coroutine that nobody awaited"
GENERATED = "it returned a generator that nobody went through"


def plain(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them who do not think of `async def`."""

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return call


class Forgetful(Middleware):
    async def arun(self, invocation: Invocation, call_next: Callable[[Invocation], Awaitable[Any]], /) -> Any:
        return call_next(invocation)


def ends(app: TaskQ, backend: str) -> list[tuple[str, str]]:
    """Reason and message of all dead letters, after everything published has ended, without a warning."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with working(app, backend) as worker:
            wait_finished(worker)
        gc.collect()
    assert [str(one.message) for one in warned if "never awaited" in str(one.message)] == []
    letters = [told(letter) for letter in dead_letters(app)]
    return [(letter["reason"], letter["message"].partition(":")[0]) for letter in letters]


@pytest.mark.parametrize("declared", [{}, {"timeout": 60}], ids=["plain", "limited"])
@pytest.mark.parametrize("called", [{}, {"expires": 600}], ids=["", "careful"])
def test_an_async_function_under_a_plain_decorator_fails(
    app: TaskQ, backend: str, declared: dict[str, Any], called: dict[str, Any]
) -> None:
    @app.task(**declared)
    @plain
    async def work(number: int, *, loud: bool = False) -> None: ...

    work.options(**called).delay(1)
    work.options(**called).delay(1, loud=True)
    assert ends(app, backend) == [("failed", AWAITED)] * 2


@pytest.mark.parametrize("declared", [{}, {"timeout": 60}], ids=["plain", "limited"])
def test_a_middleware_that_forgets_to_await_fails_what_it_is_around(
    app: TaskQ, backend: str, declared: dict[str, Any]
) -> None:
    app.add_middleware(Forgetful())

    @app.task(**declared)
    async def work() -> None: ...

    work.delay()
    assert ends(app, backend) == [("failed", AWAITED)]


def test_a_generator_has_not_run_either(app: TaskQ, backend: str) -> None:
    @app.task
    @plain
    def many() -> Iterator[int]:
        yield 1

    @app.task
    @plain
    async def many_async() -> AsyncIterator[int]:
        yield 1

    @app.task
    async def lazy() -> Iterator[int]:
        return (number for number in range(3))

    for task in (many, many_async, lazy):
        task.delay()
    assert ends(app, backend) == [("failed", GENERATED)] * 3


def test_a_decorator_that_runs_the_coroutine_itself_is_well(app: TaskQ, backend: str) -> None:
    """As those who come from Celery have."""
    ran: list[int] = []

    def run_to_its_end(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            return asyncio.run(fn(*args, **kwargs))

        return call

    @app.task
    @run_to_its_end
    async def work(number: int) -> int:
        ran.append(number)
        return number

    work.delay(7)
    assert ends(app, backend) == []
    assert ran == [7]


def test_in_a_child_process_it_fails_likewise(tmp_path: Path) -> None:
    with bench(tmp_path, "tests.apps.processes") as here:
        here.task("forget").delay()
        here.task("forget_async").delay()
        with working(here.app, group="feed") as worker:
            wait_finished(worker)
        messages = [told(letter)["message"].partition(":")[0] for letter in dead_letters(here.app, "feed")]
    assert messages == [AWAITED] * 2
