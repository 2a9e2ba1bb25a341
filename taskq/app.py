"""An app: the tasks and events of a program, and the broker they are published to."""

from __future__ import annotations

import inspect
import logging
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType, SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Literal, Never, ParamSpec, Self, TypeVar, overload

from attrs import frozen

from taskq.broker.port import Broker, Producer
from taskq.config import Settings, did_you_mean, load_settings, with_overrides
from taskq.decorators import AsyncTask, Decorator, Priority, SyncTask, Task, default_name, make_task
from taskq.errors import BrokerUnavailable, ConfigError
from taskq.events import Event
from taskq.lifespans import Lifespan, Lifespans
from taskq.middleware import Middleware, check_middleware, wrap
from taskq.options import MAX_DELIVERIES, Key, SerializerName, check_options
from taskq.retry import Retry
from taskq.topics import check_not_a_groups_own, retry_topic

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound="Lifespan[TaskQ]")

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

_log = logging.getLogger("taskq")


@frozen
class Handlers:
    """What a worker of one group runs."""

    group: str
    by_name: Mapping[str, tuple[Task[Any, Any], ...]]
    """The name of a task or an event -> what to run for a record that carries it."""
    topics: tuple[str, ...]
    """Where such records are, sorted."""


class TaskQ:
    """Tasks, events, and the broker, which is opened when first used and never by an import.

    Settings are the arguments given here, over `TASKQ_*` variables, over pyproject.toml (`taskq.config`). An app may be
    used by any number of threads, and after a fork: the child opens the broker for itself.
    """

    # _lock guards what is opened, settings included. Registration is done while modules are imported, by one thread.

    def __init__(
        self,
        name: str,
        *,
        broker: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.name = name
        self.retry = retry
        """The policy of tasks without one of their own."""
        self.state = SimpleNamespace()
        """What lifespans leave here for tasks, such as pools of connections."""
        self.opened: Producer | None = None
        self._lifespans: Lifespans[TaskQ] = Lifespans()
        self._middleware: tuple[Middleware, ...] = ()
        self._is_middleware_used = False
        self._overrides: dict[str, Any] = {"broker": broker}
        self._given_settings = settings
        self._settings: Settings | None = None
        self._broker: Broker | None = None
        self._refusal: str | None = None
        self._lock = threading.RLock()
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._events: dict[str, Event] = {}
        _apps.add(self)

    def __repr__(self) -> str:
        return f"<TaskQ {self.name}: {len(self._tasks)} tasks, {len(self._events)} events>"

    # -- defining

    @overload
    def task(  # type: ignore[overload-overlap]  # the first that fits is the one that counts
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> SyncTask[P, R]: ...
    @overload
    def task(
        self,
        *,
        name: str | None = None,
        topic: str | None = None,
        group: str | None = None,
        key: Key | None = None,
        serializer: SerializerName = "msgpack",
        order: Literal["none", "key", "partition"] = "none",
        executor: Literal["auto", "process"] = "auto",
        retry: Retry | None = None,
        timeout: float | None = None,
        expires: float | None = None,
        max_deliveries: int = MAX_DELIVERIES,
        at_most_once: bool = False,
        rate_limit: str | float | None = None,
        concurrency: int | None = None,
        priority: Priority | None = None,
    ) -> Decorator: ...
    def task(self, fn: Any = None, **options: Any) -> Any:
        """Make a task of a function: `@task`, or `@task(...)` with options.

        name        what invocations call it; by default its module and name
        topic       where they are published; by default the app's default topic
        group       whose workers run them; by default the app's default group
        key         of their records: a string, or a function of some of the task's parameters, by name. Records with
                    one key are in one partition
        serializer  "msgpack" (default), "json", or "cloudpickle", which needs TASKQ_SECRET and takes any arguments
        retry       a `Retry`: how often and when to try again what failed; by default the app's
        timeout     seconds that a run may take: `async def` tasks and those in processes are stopped then
        expires     seconds after publishing, after which an invocation is not started any more
        order       "none" (default); "key": those with one key run one at a time, in order, retries included;
                    "partition": all of a partition do
        executor    "process": run in a child process that can be killed
        at_most_once    commit before running: what a crash interrupts does not run again
        max_deliveries  how many workers an invocation may kill (3)
        rate_limit  how many may start in the whole group: "100/s", "10/m"
        concurrency how many may run at once in a worker process
        priority    "high", "normal" or "low": topics of their own, of which workers take more, or less, at a time

        Raises ConfigError for options that are unknown or malformed, and for a name that is taken.
        """

        def decorate(fn: Any) -> Task[Any, Any]:
            return make_task(self, fn, options)

        return decorate if fn is None else decorate(fn)

    def event(self, name: str, *, topic: str | None = None, **unknown: Never) -> Event:
        """Return the event of this name, made when first asked for; without a topic, on the app's default topic.

        Raises ConfigError if it is known with another topic.
        """
        check_options(f"event {name!r}", unknown, ("topic",))
        event = self._events.get(name) or Event(self, name, topic)
        if not event.is_on(topic):
            raise ConfigError(f"event {name!r} is declared twice, with different topics")
        if name in self._tasks:
            raise ConfigError(f"event {name!r}: a task has this name")
        return self._events.setdefault(name, event)

    def add_task(self, task: Task[Any, Any]) -> None:
        """Raises ConfigError if a task or event has this name, unless the task's module was loaded again."""
        known = self._tasks.get(task.name)
        if known is not None and not _is_reloaded(known, task):
            raise ConfigError(
                f"there are two tasks {task.name!r}: {_place(known)} and {_place(task)}; give one a name="
            )
        if task.name in self._events:
            raise ConfigError(f"task {task.name!r}: an event has this name")
        self._tasks[task.name] = task

    def lifespan(self, fn: F) -> F:
        """Have what `fn` opens opened once in each worker process, before anything runs, and closed after the drain.

            @app.lifespan
            async def pool(app):
                async with make_pool() as app.state.pool:
                    yield

        `fn` is an async generator function that yields once, or makes an async context manager. Several are opened in
        the order in which they were registered and closed in reverse. They run on the worker's event loop and may
        start tasks of their own there. `def` tasks run in threads, so what those use must be thread-safe. What `fn`
        raises ends the worker with exit code 1. Raises ConfigError for what can't be one.
        """
        self._lifespans.add(fn)
        return fn

    @property
    def has_lifespan(self) -> bool:
        return bool(self._lifespans)

    def open_lifespan(self) -> AbstractAsyncContextManager[None]:
        """`async with app.open_lifespan():` has open what a worker has open: for tests of tasks that need it."""
        return self._lifespans.open(self)

    def add_middleware(self, *middleware: Middleware) -> None:
        """Have these around all publishing and running. The first that was added is the outermost.

        Raises ConfigError for what is no middleware, and once something was published or a worker made: those would go
        on without.
        """
        added = tuple(map(check_middleware, middleware))
        if self._is_middleware_used:
            raise ConfigError(f"the app {self.name} has published or works: it can't be given middleware any more")
        self._middleware += added

    def use_middleware(self) -> tuple[Middleware, ...]:
        """All of it, from the outermost on. From now on none may be added."""
        self._is_middleware_used = True
        return self._middleware

    def wrapped(self, task: Task[Any, Any]) -> Callable[..., Any]:
        """The task's function with the middleware around it, to be called where `current` tells of an invocation."""
        return wrap(task, self.use_middleware())

    # -- looking up

    @property
    def tasks(self) -> Mapping[str, Task[Any, Any]]:
        """All tasks by name, handlers of events included."""
        return MappingProxyType(self._tasks)

    @property
    def events(self) -> Mapping[str, Event]:
        return MappingProxyType(self._events)

    def knows(self, name: str) -> bool:
        """Whether a task or event of any group has this name."""
        return name in self._tasks or name in self._events

    def groups(self) -> tuple[str, ...]:
        """All groups that have a task, sorted."""
        return tuple(sorted({task.group for task in self._tasks.values()}))

    def topics(self, group: str) -> tuple[str, ...]:
        """The topics a worker of `group` reads, sorted. Raises ConfigError if it has no handler."""
        return self.handlers(group).topics

    def handlers(self, group: str) -> Handlers:
        """Return what a worker of `group` runs, as far as it is defined by now.

        Raises ConfigError if that is nothing, or if it includes a task whose annotations or secrets won't do.
        """
        tasks = {name: (task,) for name, task in self._tasks.items() if task.group == group}
        if not tasks:
            there_are = (
                did_you_mean(group, self.groups())
                or "; the app has no tasks: is the module that defines them imported?"
            )
            raise ConfigError(f"no task belongs to the group {group!r}{there_are}")
        topics = {topic for (task,) in tasks.values() for topic in task.topics}
        by_name: dict[str, tuple[Task[Any, Any], ...]] = dict(tasks)
        for name, event in self._events.items():
            handlers = tuple(task for task in event.handlers if task.name in tasks)
            if handlers:
                _check_once(name, handlers)
                by_name[name] = handlers
                topics.add(event.topic)
        for (task,) in tasks.values():
            task.decode_args  # noqa: B018 - made now, so that what is wrong with it stops the worker and not the work
        check_not_a_groups_own(topics, self.groups())
        topics.add(retry_topic(group))
        return Handlers(group, MappingProxyType(by_name), tuple(sorted(topics)))

    # -- the broker

    @property
    def settings(self) -> Settings:
        """Read when first asked for. Raises ConfigError."""
        with self._lock:
            if self._settings is None:
                self._settings = self._load_settings()
            return self._settings

    def configure(self, **overrides: Any) -> None:
        """Set settings that are stronger than all others, as the command line's are. None counts as not given.

        Raises ConfigError for unknown ones, and once the broker is open.
        """
        with self._lock:
            if self._broker is not None:
                raise ConfigError(f"the app {self.name} has opened its broker: it can't be configured any more")
            self._overrides.update({name: value for name, value in overrides.items() if value is not None})
            self._settings = self._load_settings()

    def _load_settings(self) -> Settings:
        return with_overrides(self._given_settings or load_settings(), **self._overrides)

    @property
    def broker(self) -> Broker:
        """Opened when first asked for. Raises ConfigError and BrokerUnavailable."""
        with self._lock:
            if self._broker is None:
                from taskq.broker import connect

                if self._refusal is not None:
                    raise BrokerUnavailable(self._refusal)
                self._broker = connect(self.settings)
                _log.info("broker %s", self._broker.url)
            return self._broker

    @property
    def producer(self) -> Producer:
        with self._lock:
            if self.opened is None:
                self.opened = self.broker.producer()
            return self.opened

    def refuse_broker(self, why: str) -> None:
        """Have whoever needs the broker told why there is none: BrokerUnavailable."""
        self._refusal = why

    def close(self) -> None:
        """Close the broker if it is open. What is published or asked for later opens it again."""
        with self._lock:
            broker, self._broker, self.opened = self._broker, None, None
        if broker is not None:
            broker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def forget_broker(self) -> None:
        """Let go of the broker without closing it: the parent of this forked process goes on using what it opened."""
        if self._broker is not None:
            _inherited.append(self._broker)
        self._broker = self.opened = None
        self._lock = threading.RLock()  # another thread of the parent's may have held it


def _check_once(event: str, handlers: tuple[Task[Any, Any], ...]) -> None:
    """One record has one offset to commit: it can't be finished for one handler before it is for the others."""
    once = next((task for task in handlers if task.declared.at_most_once), None)
    if once is not None and len(handlers) > 1:
        raise ConfigError(
            f"event {event!r}: the handler {once.name} is at_most_once, and its group has others for the same event; "
            "give it a group of its own"
        )


def _is_reloaded(known: Task[Any, Any], task: Task[Any, Any]) -> bool:
    """Whether both are the same function, defined again by a later execution of its module."""
    if default_name(known.fn) != default_name(task.fn):
        return False
    before, after = inspect.unwrap(known.fn).__globals__, inspect.unwrap(task.fn).__globals__
    is_typed_at_a_prompt = "__file__" not in after
    return before is not after or known.spec is not task.spec or is_typed_at_a_prompt


def _place(task: Task[Any, Any]) -> str:
    code = inspect.unwrap(task.fn).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


# --- all apps

_apps: weakref.WeakSet[TaskQ] = weakref.WeakSet()
_inherited: list[Broker] = []
"""What a forked child has from its parent. Kept, since collecting it might close, and closing might unlock."""


def apps() -> list[TaskQ]:
    """All apps of this process."""
    return list(_apps)


def _forget_brokers() -> None:
    for app in apps():
        app.forget_broker()


os.register_at_fork(after_in_child=_forget_brokers)

default_app = TaskQ("default")
"""What a bare `@task` belongs to. Its settings are read when first needed."""
