"""`@app.lifespan`: what is opened in a worker process before anything runs, and closed when nothing does any more."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Generic, TypeVar, cast

from taskq.errors import ConfigError

A = TypeVar("A")

Lifespan = Callable[[A], AsyncIterator[Any]] | Callable[[A], AbstractAsyncContextManager[Any]]
"""An async generator function that yields once, or what makes an async context manager; of the app."""


class Lifespans(Generic[A]):
    """Those of one app, in the order in which they are opened."""

    def __init__(self) -> None:
        self._openers: list[Callable[[A], AbstractAsyncContextManager[Any]]] = []

    def __bool__(self) -> bool:
        return bool(self._openers)

    def add(self, fn: Lifespan[A]) -> None:
        """Raises ConfigError for what is no lifespan."""
        self._openers.append(_opener(fn))

    @asynccontextmanager
    async def open(self, app: A) -> AsyncGenerator[None]:
        """Open all, in order; inside this they are; close them, in reverse. If one can't be opened, the others are
        closed and its error raised."""
        async with AsyncExitStack() as stack:
            for opener in self._openers:
                await stack.enter_async_context(opener(app))
            yield


def _opener(fn: Any) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
    name = getattr(fn, "__qualname__", repr(fn))
    if not callable(fn) or inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn):
        raise ConfigError(f"lifespan {name}: use an `async def` function of the app that yields once")
    try:
        inspect.signature(fn).bind(None)
    except TypeError:
        raise ConfigError(f"lifespan {name}: it is called with the app and nothing else") from None
    return asynccontextmanager(fn) if inspect.isasyncgenfunction(fn) else cast(Any, fn)
