"""`event`: what happens, and what any number of groups do about it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, ParamSpec, TypeVar, overload

from taskq.config import check_topic_of_calls
from taskq.decorators import AsyncTask, Decorator, Registry, SyncTask, Task, make_task
from taskq.errors import ConfigError
from taskq.options import CallOptions, check_name, check_options
from taskq.results import Handle
from taskq.routes import Route, async_tools, make_route
from taskq.serializers import encode_event

P = ParamSpec("P")
R = TypeVar("R")


class Event:
    """A kind of thing that happens. Groups subscribe handlers to it; publishing it runs those of every group.

    A handler names as parameters the fields it needs; it is not given others, so an event may come to have more.
    """

    def __init__(self, app: Registry, name: str, topic: str | None) -> None:
        self.app = app
        self.name = check_name("an event", name)
        self._topic = None if topic is None else check_topic_of_calls(topic)
        self.handlers: tuple[Task[Any, Any], ...] = ()
        self._route: Route | None = None

    def __repr__(self) -> str:
        return f"<event {self.name}>"

    @property
    def topic(self) -> str:
        return self._topic or self.app.settings.default_topic

    def is_on(self, topic: str | None) -> bool:
        """Whether it was declared with this topic, or without one."""
        return self._topic == topic

    @overload
    def subscribe(  # type: ignore[overload-overlap]  # the first that fits is the one that counts
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...
    @overload
    def subscribe(self, fn: Callable[P, R], /) -> SyncTask[P, R]: ...
    @overload
    def subscribe(self, *, group: str | None = None, name: str | None = None) -> Decorator: ...
    def subscribe(self, fn: Any = None, **options: Any) -> Any:
        """Make a handler of a function: a task that also runs, for its group, whenever the event is published."""
        check_options(f"{self.name}.subscribe()", options, ("group", "name"))

        def decorate(fn: Any) -> Task[Any, Any]:
            is_task = isinstance(fn, Task)
            handler = (
                self._adopt(fn, options) if is_task else make_task(self.app, fn, {**options, "topic": self._topic})
            )
            others = [known for known in self.handlers if known.name != handler.name]
            self.handlers = (*others, handler)
            return handler

        return decorate if fn is None else decorate(fn)

    def _adopt(self, task: Task[Any, Any], options: Mapping[str, Any]) -> Task[Any, Any]:
        where = f"{self.name}.subscribe() of the task {task.name}"
        if task.app is not self.app:
            raise ConfigError(f"{where}: the task belongs to another app")
        if task.declared.serializer == "cloudpickle":
            raise ConfigError(f"{where}: events are not signed, and the task runs signed messages only")
        if options:
            raise ConfigError(f"{where}: a task keeps its own group and name; subscribe a function of its own instead")
        return task

    def publish(self, **fields: Any) -> Handle[None]:
        """Publish one record that every group with a handler will see. Returns once the broker has it.

        Raises ArgumentsError if a handler known here can't take these fields, and BrokerError.
        """
        route = self._route or self._make_route()
        return Handle(route.send((), fields), route.outlet)

    async def apublish(self, **fields: Any) -> Handle[None]:
        """The same from async code (asyncio or trio), never blocking the event loop.

        A call that is cancelled while it waits may have been published.
        """
        route = self._route if self._route is not None else await async_tools()[1](self._make_route)
        return Handle(await route.send_async((), fields), route.outlet)

    def _make_route(self) -> Route:
        self._route = make_route(self.app, self.name, self.topic, self._encode, None, CallOptions())
        return self._route

    def _encode(self, args: tuple[Any, ...], fields: Mapping[str, Any], ident: Any, /) -> Any:
        return encode_event(self.name, fields, ident, [handler.decode_args for handler in self.handlers])
