"""Middleware: what an app does around every publishing and every run. Nothing here swallows an error.

A middleware is called with what is about to happen and with `call_next`, which lets it happen: what it raises, before
or after, is raised by `delay()`, or is how the attempt ended. The first that was added is the outermost. A method that
a middleware does not override is never called, and where nobody overrides one, nothing is slower than without.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from taskq.broker.port import Headers
from taskq.context import current
from taskq.errors import ConfigError

if TYPE_CHECKING:
    from taskq.decorators import Task

V = TypeVar("V")
R = TypeVar("R")

# Structs, since every `import taskq` defines these classes, and an attrs class takes many times as long to define.


class Publication(Struct, frozen=True):
    """What is about to be published: one call of a task, the many of a `map`, or an event."""

    name: str
    """Of the task or event."""
    topic: str
    calls: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...]
    """Positional and keyword arguments of each, to look at. They are checked and encoded afterwards."""
    headers: Mapping[str, str | bytes]
    """Of each invocation; bytes where they are not UTF-8."""

    def with_headers(self, headers: Mapping[str, str | bytes]) -> Publication:
        """The same with more headers, or others of the same names."""
        return replace(self, headers={**self.headers, **headers})


class Invocation(Struct, frozen=True):
    """What is about to run: one attempt."""

    task: Task[Any, Any]
    id: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    headers: Mapping[str, str]
    """Those that the publisher gave."""
    attempt: int
    """Which run of this invocation this is, from 1."""
    delivery: int
    """How often a worker was handed it: more than 1 after one died with it."""
    group: str
    topic: str
    partition: int
    offset: int

    def with_arguments(self, *args: Any, **kwargs: Any) -> Invocation:
        """The same with other arguments."""
        return replace(self, args=args, kwargs=kwargs)

    @classmethod
    def of_current(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Invocation:
        """The one that `current` tells of. Raises TaskqError if that is none."""
        return cls(
            current.task,
            current.id,
            args,
            kwargs,
            current.headers,
            current.attempt,
            current.delivery,
            current.group,
            current.topic,
            current.partition,
            current.offset,
        )


class Middleware:
    """Override what you need, and give an object of it to `app.add_middleware`.

    Methods are called by many threads at once, and `arun` on the worker's event loop. `current` tells of the
    invocation in `run` and `arun`. What can't be decoded never comes here. A plain call, `fan_out(1, 2)`, is one.
    """

    def publish(
        self, publication: Publication, call_next: Callable[[Publication], tuple[str, ...]], /
    ) -> tuple[str, ...]:
        """Around publishing: `delay`, a whole `map`, `event.publish`, and their async forms, in a thread then.

        `call_next` publishes, with the headers of what it is given, and returns the ids. It must be called, or an error
        raised; and again only after it has raised. Retries and dead letters are not published anew: they keep their
        headers.
        """
        return call_next(publication)

    def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any:
        """Around a run of a `def` task. `call_next` calls it with the arguments of what it is given.

        An attempt that does not call it is done, without having run the task: raise `Reject` to give it up instead.
        """
        return call_next(invocation)

    async def arun(self, invocation: Invocation, call_next: Callable[[Invocation], Awaitable[Any]], /) -> Any:
        """The same around a run of an `async def` task. Must await `call_next`, and let cancellation through."""
        return await call_next(invocation)


_IS_ASYNC = {"publish": False, "run": False, "arun": True}


def check_middleware(middleware: object) -> Middleware:
    """Return it if it is one. Raises ConfigError."""
    if not isinstance(middleware, Middleware):
        hint = "give an object of it, not the class" if inspect.isclass(middleware) else "derive it from Middleware"
        raise ConfigError(f"{middleware!r} is no middleware: {hint}")
    for name, is_async in _IS_ASYNC.items():
        method = getattr(middleware, name)
        if inspect.iscoroutinefunction(method) != is_async and _overrides(middleware, name):
            raise ConfigError(f"{type(middleware).__name__}.{name} must be {'async def' if is_async else 'def'}")
    return middleware


def layers(middleware: Iterable[Middleware], name: str) -> list[Callable[..., Any]]:
    """The methods of that name of those that override it."""
    return [getattr(one, name) for one in middleware if _overrides(one, name)]


def _overrides(middleware: Middleware, name: str) -> bool:
    return getattr(type(middleware), name) is not getattr(Middleware, name)


def around(layers: Sequence[Callable[[V, Callable[[V], R]], R]], core: Callable[[V], R]) -> Callable[[V], R]:
    """`core` with all layers around it, the first outermost."""
    for layer in reversed(layers):
        core = functools.partial(_call, layer, core)
    return core


def _call(layer: Callable[[V, Callable[[V], R]], R], call_next: Callable[[V], R], value: V) -> R:
    return layer(value, call_next)


def wrap(task: Task[Any, Any], middleware: Iterable[Middleware]) -> Callable[..., Any]:
    """What to call instead of a task's function, where `current` tells of the invocation: that itself if nothing is
    around it."""
    fn = task.fn
    own = layers(middleware, "arun" if task.is_async else "run")
    if not own:
        return fn
    chain = around(own, lambda invocation: fn(*invocation.args, **invocation.kwargs))

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return chain(Invocation.of_current(args, kwargs))

    async def wrapped_async(*args: Any, **kwargs: Any) -> Any:
        return await chain(Invocation.of_current(args, kwargs))

    return functools.wraps(fn)(wrapped_async if task.is_async else wrapped)


def said_headers(headers: Headers) -> Mapping[str, str | bytes]:
    """A record's headers as a publication has them."""
    return {name: _as_text(value) for name, value in headers}


def _as_text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
