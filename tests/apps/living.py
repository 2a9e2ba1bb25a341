"""An app with a lifespan and middleware, whose tasks run in child processes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio

from taskq import Invocation, Middleware, TaskQ
from tests.apps.lines import write

app = TaskQ("living")
tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


class Around(Middleware):
    def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any:
        write(f"before {invocation.args} {os.getpid()}")
        return call_next(invocation.with_arguments(invocation.args[0] + 100))

    async def arun(self, invocation: Invocation, call_next: Callable[[Invocation], Awaitable[Any]], /) -> Any:
        write(f"before {invocation.args} {os.getpid()}")
        return await call_next(invocation)


app.add_middleware(Around())


def is_asked_to(what: str) -> bool:
    return Path(os.environ["TEST_AUDIT"]).with_name(what).exists()


@app.lifespan
async def resource(app: TaskQ) -> AsyncIterator[None]:
    if is_asked_to("fail"):
        raise RuntimeError("it is not to be had")
    write(f"open {os.getpid()}")
    tenant.set("all")
    app.state.resource = anyio.Event()

    async def fail_when_asked() -> None:
        while not is_asked_to(f"break {os.getpid()}"):  # noqa: ASYNC110 - another process asks
            await anyio.sleep(0.01)
        raise RuntimeError("it broke")

    async with anyio.create_task_group() as group:
        group.start_soon(fail_when_asked)
        yield
        group.cancel_scope.cancel()
    write(f"closed {os.getpid()}")


@app.task(topic="feed", group="feed", executor="process")
def use(number: int) -> None:
    write(f"uses {number} {os.getpid()} {app.state.resource.is_set()}")


@app.task(topic="feed", group="feed", executor="process")
async def use_async(number: int) -> None:
    app.state.resource.set()
    await app.state.resource.wait()
    write(f"uses {number} {os.getpid()} {app.state.resource.is_set()}")


@app.task(topic="feed", group="feed", executor="process")
def leave(number: int) -> None:
    write(f"finds {tenant.get()}")
    tenant.set("mine")


@app.task(topic="feed", group="feed", executor="process")
async def leave_async(number: int) -> None:
    write(f"finds {tenant.get()}")
    tenant.set("mine")


@app.task(topic="feed", group="feed", executor="process")
async def stay() -> None:
    write(f"stays {os.getpid()}")
    await anyio.sleep(600)
