"""What type checkers make of tasks."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import taskq
from tests.needs import missing

TYPED = """
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, assert_type
from taskq import Handle, Invocation, Middleware, Publication, TaskQ, current, event, lifespan, task

@task
def fan_out(author_id: int, post_id: int = 0) -> int:
    return post_id

@task(topic="feed", key=lambda author_id: author_id)
async def notify(author_id: int) -> str:
    return current.id

@event("post.created").subscribe(group="feed")
def index(post_id: int) -> None: ...

@TaskQ("x").task
async def other(*, loud: bool) -> bytes:
    return b""

@lifespan
async def pool(app: TaskQ) -> AsyncIterator[None]:
    app.state.pool = 1
    yield

@TaskQ("y").lifespan
@asynccontextmanager
async def other_pool(app: TaskQ) -> AsyncGenerator[int, None]:
    yield 1

class Traced(Middleware):
    def publish(
        self, publication: Publication, call_next: Callable[[Publication], tuple[str, ...]], /
    ) -> tuple[str, ...]:
        return call_next(publication.with_headers({"trace": "1"}))

    def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any:
        return call_next(invocation.with_arguments(1, b=2))

    async def arun(self, invocation: Invocation, call_next: Callable[[Invocation], Awaitable[Any]], /) -> Any:
        assert_type(invocation.attempt, int)
        return await call_next(invocation)

class OtherNames(Middleware):
    def run(self, what: Invocation, then: Callable[[Invocation], Any]) -> Any:
        return then(what)

TaskQ("z").add_middleware(Traced(), OtherNames())

async def opened(app: TaskQ) -> None:
    async with app.open_lifespan():
        pass

def not_a_lifespan(app: TaskQ) -> int:
    return 1

async def right() -> None:
    assert_type(fan_out.delay(1, post_id=2), Handle[int])
    assert_type(await fan_out.adelay(1), Handle[int])
    assert_type(fan_out.map([(1,), (2, 3)]), list[Handle[int]])
    assert_type(fan_out(1), int)
    assert_type(notify.delay(1), Handle[str])
    assert_type(await notify(1), str)
    assert_type(fan_out.options(key="7").delay(1), Handle[int])
    assert_type(fan_out.options(delay=60, expires=3600).delay(1), Handle[int])
    assert_type(fan_out.apply_async((1, 2), countdown=60), Handle[int])
    assert_type(other.delay(loud=True), Handle[bytes])
    index.delay(post_id=1)
"""

WRONG = [
    'fan_out.delay("x")',
    "fan_out.delay()",
    "fan_out.delay(1, 2, 3)",
    "fan_out.delay(1, postid=2)",
    'fan_out.options(key="7").delay("x")',
    'notify.delay("x")',
    "index.delay()",
    "other.delay(True)",
    'fan_out("x")',
    "task(retry=5)",
    'task(order="keys")',
    'task(executor="gpu")',
    "fan_out.options(key=1.5)",
    'fan_out.options(delay="60")',
    'fan_out.apply_async((1, 2), countdown="60")',
    'event("e", key="k")',
    "fan_out.map([1, 2])",
    "TaskQ('x').add_middleware(Traced)",
    "TaskQ('x').lifespan(not_a_lifespan)",
]


def type_check(tmp_path: Path, checker: Callable[[str], list[str]], lines: list[str]) -> str:
    if find_spec(checker.__name__) is None:
        missing(checker.__name__, f"{checker.__name__} is not installed")
    file = tmp_path / "snippet.py"
    file.write_text(TYPED + "\n".join(lines) + "\n")
    return subprocess.run(checker(str(file)), capture_output=True, text=True, timeout=120, check=False).stdout


def mypy(file: str) -> list[str]:
    return [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(Path(file).parent / "cache"), file]


def basedpyright(file: str) -> list[str]:
    return [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--level", "error", file]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_type_checkers_know_what_fits(tmp_path: Path, checker: Callable[[str], list[str]]) -> None:
    first = TYPED.count("\n") + 1

    shown = type_check(tmp_path, checker, WRONG)
    wrong_lines = {int(line) for line in re.findall(r"snippet\.py:(\d+):\d+", shown)}
    assert wrong_lines == set(range(first, first + len(WRONG))), shown


def test_the_package_ships_its_types() -> None:
    assert (Path(taskq.__file__).parent / "py.typed").exists()
