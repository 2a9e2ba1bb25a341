"""`@task`: functions that can be published."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Never, ParamSpec, Protocol, TypeVar, overload

from msgspec.structs import replace

from taskq.arguments import Parameters
from taskq.errors import ArgumentsError, ConfigError
from taskq.options import (
    PRIORITIES,
    CallOptions,
    TaskOptions,
    call_options,
    check_in_time,
    check_options,
    parse_moment,
    priority_topic,
    task_options,
)
from taskq.results import Handle
from taskq.retry import Retry
from taskq.routes import Outlet, Route, async_tools, make_key, make_route
from taskq.serializers import Decode, Serializer, make_serializer

if TYPE_CHECKING:
    from datetime import datetime, timedelta

P = ParamSpec("P")
R = TypeVar("R")

Priority = Literal["high", "normal", "low"]

NO_RETRY: Final = Retry(0)


class Registry(Outlet, Protocol):
    """What a task needs of its app."""

    retry: Retry | None
    """The policy of tasks without one of their own."""

    def add_task(self, task: Task[Any, Any]) -> None:
        """Raises ConfigError if another task or event has its name."""
        ...

    def wrapped(self, task: Task[Any, Any]) -> Callable[..., Any]:
        """Its function with the app's middleware around it."""
        ...


class Calls(Generic[P, R]):
    """Publishing calls of a task: the task itself, or the task with `options`."""

    # Set once, when first needed. Two threads that do so at once make the same.
    _route: Route | None = None

    def _make_route(self) -> Route:
        raise NotImplementedError

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Publish a call; return once the broker has it.

        Raises ArgumentsError if it doesn't fit the task's parameters, and BrokerError: either way nothing is published.
        """
        route = self._route or self._make_route()
        return Handle(route.send(args, kwargs), route.outlet)

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """The same from async code (asyncio or trio), never blocking the event loop.

        A call that is cancelled while it waits may have been published.
        """
        route = self._route if self._route is not None else await async_tools()[1](self._make_route)
        return Handle(await route.send_async(args, kwargs), route.outlet)

    def map(self, calls: Iterable[tuple[Any, ...]]) -> list[Handle[R]]:
        """Publish many calls at once, each a tuple of positional arguments. All are checked before any is published.

        Raises what `delay` does. A BrokerError may leave some partitions' share published.
        """
        route = self._route or self._make_route()
        return [Handle(ident, route.outlet) for ident in route.send_many(calls)]

    async def amap(self, calls: Iterable[tuple[Any, ...]]) -> list[Handle[R]]:
        """The same from async code, never blocking the event loop."""
        _, run_in_thread = async_tools()
        collected = list(calls)
        handles: list[Handle[R]] = await run_in_thread(self.map, collected)
        return handles


class Task(Calls[P, R]):
    """A function that can be published, and stays one that can be called. Made by `@task` and `subscribe`.

    P are the function's parameters, R is what it returns, awaited if need be.
    """

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]
    is_async = False

    def __init__(self, app: Registry, fn: Callable[..., Any], options: TaskOptions) -> None:
        functools.update_wrapper(self, fn)
        self.app = app
        self.fn = fn
        self.name = options.name or default_name(fn)
        self.declared = options
        """What its decorator said."""
        self.spec = getattr(inspect.unwrap(fn), "__globals__", {}).get("__spec__")
        """Of the module as it was when it made this task: another one after a reload."""
        self._parameters = Parameters(self.name, fn)
        self._key = make_key(options.key, self._parameters)
        self._serializer: Serializer | None = None
        self._expires = None if options.expires is None else parse_moment("expires", options.expires)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __reduce__(self) -> str:
        return self.__qualname__  # as functions are: by name, from its module

    @property
    def group(self) -> str:
        return self.declared.group or self.app.settings.default_group

    @property
    def topic(self) -> str:
        """Where its invocations go, those of normal priority."""
        return self.declared.topic or self.app.settings.default_topic

    @property
    def topics(self) -> tuple[str, ...]:
        """All topics its invocations may be in."""
        priorities = PRIORITIES if self.declared.priority else ("normal",)
        return tuple(priority_topic(self.topic, priority) for priority in priorities)

    @property
    def retry(self) -> Retry:
        """Its policy: its own, or the app's."""
        return NO_RETRY if self.declared.at_most_once else self.declared.retry or self.app.retry or NO_RETRY

    @property
    def serializer(self) -> Serializer:
        """What encodes and decodes calls. Made when first asked for, which raises ConfigError if it can't be."""
        if self._serializer is None:
            self._serializer = make_serializer(self.declared.serializer, self._parameters, self.app.settings.secrets)
        return self._serializer

    @property
    def decode_args(self) -> Decode:
        """Returns an envelope's arguments, converted. Raises an InvocationError.

        A function with all it needs bound to it: who decodes often keeps it.
        """
        return self.serializer.decode

    def options(
        self,
        *,
        key: str | bytes | int | None = None,
        topic: str | None = None,
        id: str | None = None,  # noqa: A002 - SPEC's name
        headers: Mapping[str, str | bytes] | None = None,
        delay: float | timedelta | None = None,
        at: float | datetime | None = None,
        expires: float | timedelta | datetime | None = None,
        priority: Priority | None = None,
        **unknown: Never,
    ) -> Calls[P, R]:
        """Return the same to publish otherwise. Raises ConfigError.

        key       of the record, instead of the task's own
        topic     where to, instead of the task's own
        id        of the invocation, instead of a new one
        headers   that the task finds in `current.headers`
        delay     seconds, or a timedelta, before it is to run: never earlier
        at        or when: a datetime with a time zone, or seconds since 1970
        expires   when it is not to be started any more: seconds or a timedelta after publishing, or a datetime
        priority  "high", "normal" or "low", for a task that was given one
        """
        given = {"key": key, "topic": topic, "id": id, "headers": headers, "delay": delay, "at": at}
        given |= {"expires": expires, "priority": priority, **unknown}
        return _CallsWithOptions(self, self._check_call(call_options(f"{self.name}.options()", given)))

    def _check_call(self, options: CallOptions) -> CallOptions:
        if options.priority is not None and self.declared.priority is None:
            raise ConfigError(
                f"{self.name}: its workers read no topics of other priorities; declare it with "
                f'@task(priority="normal") to publish some with {options.priority!r}'
            )
        if options.expires is None and options.due is not None:
            try:
                check_in_time(options.due, self._expires)
            except ConfigError as error:
                raise ConfigError(f"{self.name}: {error}; say expires= anew") from None
        return options

    def apply_async(
        self,
        args: list[Any] | tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        task_id: str | None = None,
        queue: str | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        countdown: float | None = None,
        eta: datetime | None = None,
        expires: float | datetime | None = None,
        **unknown: Never,
    ) -> Handle[R]:
        """`delay` in Celery's spelling: a queue is a topic, `countdown` is `delay`, `eta` is `at`."""
        where = f"{self.name}.apply_async()"
        known = ("args", "kwargs", "task_id", "queue", "headers", "countdown", "eta", "expires")
        check_options(where, unknown, known)
        given = {"id": task_id, "topic": queue, "headers": headers, "delay": countdown, "at": eta, "expires": expires}
        options = self._check_call(call_options(where, given))
        route = self.route(options)
        return Handle(route.send(*_celery_arguments(self.name, args or (), kwargs or {})), route.outlet)

    def _make_route(self) -> Route:
        self._route = self.route(CallOptions())
        return self._route

    def route(self, options: CallOptions) -> Route:
        declared = self.declared
        priority = options.priority or (None if options.topic else declared.priority)
        topic = priority_topic(options.topic or self.topic, priority)
        if options.expires is None and self._expires is not None:
            options = replace(options, expires=self._expires)
        return make_route(self.app, self.name, topic, self.serializer.encode, self._key, options)


class SyncTask(Task[P, R]):
    """A task of a `def` function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)  # type: ignore[no-any-return]


class AsyncTask(Task[P, R]):
    """A task of an `async def` function."""

    is_async = True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        return self.fn(*args, **kwargs)  # type: ignore[no-any-return]


class _CallsWithOptions(Calls[P, R]):
    def __init__(self, task: Task[P, R], options: CallOptions) -> None:
        self._task = task
        self._options = options

    def _make_route(self) -> Route:
        self._route = self._task.route(self._options)
        return self._route


class Decorator(Protocol):
    """Makes a task of a function."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # the first that fits is the one that counts
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncTask[P, R]: ...


# --- making tasks


def make_task(app: Registry, fn: Any, given: Mapping[str, Any]) -> Task[Any, Any]:
    """Make a task of a function and register it. Raises ConfigError for what can't be one, and for options."""
    where = f"@task of {getattr(fn, '__qualname__', repr(fn))}"
    if isinstance(fn, Task) or not inspect.isfunction(fn):
        raise ConfigError(f"{where}: a task is made of a function, and this is a {type(fn).__name__}")
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigError(f"{where}: a generator can't be a task; return a list")
    if _is_method(fn):
        raise ConfigError(f"{where}: a method can't be a task, since a message carries no object; use a function")
    options = task_options(where, given)
    made: Task[Any, Any] = (AsyncTask if inspect.iscoroutinefunction(fn) else SyncTask)(app, fn, options)
    app.add_task(made)
    return made


def default_name(fn: Callable[..., Any]) -> str:
    """Return the name of a task that is not given one: its function's module and name within that."""
    return f"{module_of(fn)}.{fn.__qualname__}"


def module_of(fn: Callable[..., Any]) -> str:
    """Return the name under which another process imports a function's module: also of one that is run as a program."""
    return _main_module() if fn.__module__ == "__main__" else fn.__module__


def _main_module() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:  # python -m shop.tasks
        return str(spec.name)
    file = getattr(main, "__file__", None)
    if file is None:  # an interpreter's prompt
        return "__main__"
    path = Path(file).resolve()  # python shop/tasks.py
    names = [path.stem]
    for folder in path.parents:
        if not folder.joinpath("__init__.py").exists():
            break
        names.insert(0, folder.name)
    return ".".join(names)


def _celery_arguments(name: str, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(args, list | tuple) and isinstance(kwargs, Mapping):
        return tuple(args), kwargs
    raise ArgumentsError(f"{name}.apply_async(): args={args!r} is no list or tuple, or kwargs={kwargs!r} is no mapping")


def _is_method(fn: Callable[..., Any]) -> bool:
    """Whether the function was defined in a class's body and expects the instance or class."""
    scope = fn.__qualname__.rpartition(".")[0]
    first = next(iter(inspect.signature(fn).parameters), None)
    return bool(scope) and not scope.endswith("<locals>") and first in ("self", "cls")
