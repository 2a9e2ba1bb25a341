"""The way of an invocation from a call to the broker: one core, for tasks and events, one or many, sync and async.

A `Route` is all that can be settled before a call: topic, key, headers, encoder, metrics. What is left for a call is to
encode, send and count, which is what makes publishing cheap.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache
from operator import itemgetter
from time import perf_counter
from types import MappingProxyType
from typing import Any, Protocol

from msgspec.structs import replace

from taskq.arguments import Parameters
from taskq.broker.partitioner import key_required
from taskq.broker.port import Headers, Message, Producer, WouldBlock
from taskq.config import Settings, did_you_mean
from taskq.errors import ArgumentsError, ConfigError, TaskqError
from taskq.ladder import delayed
from taskq.message import Id, encode_headers, format_id
from taskq.metrics import metrics
from taskq.middleware import Middleware, Publication, around, layers, said_headers
from taskq.options import CallOptions, Moment, encode_key
from taskq.serializers import Encode
from taskq.trip import EXPIRES, with_header

KeyOf = Callable[[tuple[Any, ...], Mapping[str, Any]], bytes | None]
"""Makes a record's key of a call's positional and keyword arguments."""


@cache
def async_tools() -> tuple[Callable[[], Awaitable[None]], Callable[..., Awaitable[Any]]]:
    """Return anyio's `checkpoint` and `to_thread.run_sync`. Who publishes from sync code only never imports anyio."""
    from anyio import lowlevel, to_thread

    return lowlevel.checkpoint, to_thread.run_sync


class Outlet(Protocol):
    """What a route needs of an app: its broker's producer, opened when first used."""

    opened: Producer | None
    """The producer, if it is open."""

    @property
    def producer(self) -> Producer:
        """The producer, opened if need be: that may block."""
        ...

    @property
    def settings(self) -> Settings: ...

    def use_middleware(self) -> tuple[Middleware, ...]:
        """What is around publishing. From now on none may be added."""
        ...


class Route:
    """Publishes the calls of one task or event."""

    # All constant. Threads share it freely.
    __slots__ = (
        "_encode", "_headers", "_ident", "_key", "_key_of", "_observe", "_published", "_topic", "_when", "outlet"
    )  # fmt: skip

    def __init__(
        self, outlet: Outlet, name: str, topic: str, encode: Encode, key: bytes | KeyOf | None, options: CallOptions
    ) -> None:
        key = key if options.key is None else options.key
        self.outlet = outlet
        self._topic = topic
        self._encode = encode
        self._key_of = key if callable(key) else None
        self._key = None if callable(key) else key
        self._ident = options.ident
        self._headers: Headers = options.headers
        self._when = None
        if options.due or options.expires:
            needs_key = options.due is not None and _is_compacted(outlet, topic)
            self._when = _When(options.due, options.expires, needs_key=needs_key)
        self._published = metrics.published.labels(topic, name)
        self._observe = metrics.publish_seconds.labels(topic).observe

    def send(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Id:
        """Publish one call; return its id once the broker has it."""
        started = perf_counter()
        ident, value, key = self._prepare(args, kwargs)
        outlet = self.outlet
        topic, headers = (self._topic, self._headers) if self._when is None else self._place(value, key)
        (outlet.opened or outlet.producer).send(topic, value, key, headers)
        self._observe(perf_counter() - started)
        self._published.value += 1
        return ident

    async def send_async(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Id:
        """The same without blocking the event loop.

        A call that is cancelled before it begins is not published. One that is cancelled while it waits, for the disk
        or for another process, may have been: asyncio's own cancellation ends the waiting, not what it waits for.
        """
        checkpoint, run_in_thread = async_tools()
        await checkpoint()
        started = perf_counter()
        ident, value, key = self._prepare(args, kwargs)
        outlet = self.outlet
        producer = outlet.opened
        if producer is None:
            producer = await run_in_thread(lambda: outlet.producer)
        topic, headers = (self._topic, self._headers) if self._when is None else self._place(value, key)
        try:
            producer.send(topic, value, key, headers, wait=False)
        except WouldBlock:
            await run_in_thread(producer.send, topic, value, key, headers)
        self._observe(perf_counter() - started)
        self._published.value += 1
        return ident

    def _prepare(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Id, bytes, bytes | None]:
        ident, value = self._encode(args, kwargs, self._ident)
        key_of = self._key_of
        return ident, value, self._key if key_of is None else key_of(args, kwargs)

    def _place(self, value: bytes, key: bytes | None) -> tuple[str, Headers]:
        """Topic and headers of what expires, or is to run later."""
        assert self._when is not None
        topic, message = self._when.place(self._topic, Message(value, key, self._headers), _now_ms())
        return topic, message.headers

    def send_many(self, calls: Iterable[tuple[Any, ...]]) -> list[Id]:
        """Publish many calls of positional arguments at once. All are encoded, hence checked, before any is sent."""
        if self._ident is not None:
            raise ConfigError("map publishes many invocations; they can't all have the one id that options() gave")
        started = perf_counter()
        encode, key, key_of, headers = self._encode, self._key, self._key_of, self._headers
        nothing: dict[str, Any] = {}
        make = tuple.__new__  # what Message(...) does after its defaults; half its price
        idents: list[Id] = []
        messages: list[Message] = []
        for call in calls:
            args = call if call.__class__ is tuple else _as_tuple(call)
            ident, value = encode(args, nothing, None)
            if key_of is not None:
                key = key_of(args, nothing)
            idents.append(ident)
            messages.append(make(Message, (value, key, headers)))
        if messages:
            topic = self._topic
            if self._when is not None:
                topic, messages = self._when.place_all(topic, messages, _now_ms())
            self.outlet.producer.send_many(topic, messages)
            self._observe(perf_counter() - started)
            self._published.value += len(messages)
        return idents


class WrappedRoute(Route):
    """The same with middleware around it. Async code publishes in a thread, since middleware is sync and may block."""

    __slots__ = ("_layers", "_make", "_name")

    def __init__(
        self, outlet: Outlet, name: str, topic: str, encode: Encode, key: bytes | KeyOf | None, options: CallOptions
    ) -> None:
        super().__init__(outlet, name, topic, encode, key, options)
        self._layers = layers(outlet.use_middleware(), "publish")
        self._name = name

        def make(headers: Headers) -> Route:
            return Route(outlet, name, topic, encode, key, replace(options, headers=headers))

        self._make = make

    def send(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Id:
        return self._publish(((args, MappingProxyType(kwargs)),), lambda route: [Route.send(route, args, kwargs)])[0]

    async def send_async(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Id:
        checkpoint, run_in_thread = async_tools()
        await checkpoint()
        ident: Id = await run_in_thread(self.send, args, kwargs)
        return ident

    def send_many(self, calls: Iterable[tuple[Any, ...]]) -> list[Id]:
        collected = [_as_tuple(call) for call in calls]
        if not collected:
            return Route.send_many(self, ())
        nothing: Mapping[str, Any] = MappingProxyType({})
        return self._publish(
            tuple((args, nothing) for args in collected), lambda route: Route.send_many(route, collected)
        )

    def _publish(
        self, calls: tuple[tuple[tuple[Any, ...], Mapping[str, Any]], ...], send: Callable[[Route], list[Id]]
    ) -> list[Id]:
        """Have `send` called by the innermost middleware, with a route of the headers that came through."""
        idents: list[Id] = []
        said = Publication(self._name, self._topic, calls, MappingProxyType(said_headers(self._headers)))

        def publish(publication: Publication) -> tuple[str, ...]:
            if idents:
                raise TaskqError(f"publishing {said.name}: it is published, and a middleware called call_next again")
            if (publication.name, publication.topic) != (said.name, said.topic) or publication.calls is not said.calls:
                raise ConfigError(f"publishing {said.name}: middleware may change its headers and nothing else")
            is_same = publication.headers is said.headers
            idents[:] = send(self if is_same else self._make(encode_headers(publication.headers)))
            return tuple(map(format_id, idents))

        around(self._layers, publish)(said)
        if not idents:
            raise TaskqError(f"publishing {self._name}: a middleware neither published it nor raised why not")
        return idents


def make_route(
    outlet: Outlet, name: str, topic: str, encode: Encode, key: bytes | KeyOf | None, options: CallOptions
) -> Route:
    """The way of one task's or event's calls, through the middleware if there is any around publishing."""
    kind = WrappedRoute if layers(outlet.use_middleware(), "publish") else Route
    return kind(outlet, name, topic, encode, key, options)


def _now_ms() -> int:
    """Rounded up: what waits for a while must never start early."""
    return -(-time.time_ns() // 1_000_000)


class _When:
    """When calls are to run, and not to be started any more."""

    def __init__(self, due: Moment | None, expires: Moment | None, *, needs_key: bool) -> None:
        self._due = due
        self._expires = expires
        self._needs_key = needs_key

    def place(self, topic: str, message: Message, now_ms: int) -> tuple[str, Message]:
        """Where to publish `message` now, and as what."""
        if self._expires is not None:
            headers = with_header(message.headers, EXPIRES, b"%d" % self._expires.seen_at(now_ms))
            message = Message(message.value, message.key, headers)
        due_ms = 0 if self._due is None else self._due.seen_at(now_ms)
        if self._needs_key and message.key is None:
            raise key_required(topic)
        return delayed(message, topic, due_ms, now_ms) if due_ms > now_ms else (topic, message)

    def place_all(self, topic: str, messages: list[Message], now_ms: int) -> tuple[str, list[Message]]:
        """The same for many: all go to one topic, since all are due at once."""
        placed = [self.place(topic, message, now_ms) for message in messages]
        return placed[0][0], [message for _, message in placed]


def _is_compacted(outlet: Outlet, topic: str) -> bool:
    """Whether the project says so: what waits on the ladder would be refused only when it is due."""
    config = outlet.settings.topics.get(topic)
    return config is not None and config.settings.get("cleanup_policy") == "compact"


def _as_tuple(args: Any) -> tuple[Any, ...]:
    if isinstance(args, tuple | list):
        return tuple(args)
    raise ArgumentsError(f"map takes tuples of arguments, such as map([(1, 2), (3, 4)]); {args!r} is not one")


def make_key(key: Any, parameters: Parameters) -> bytes | KeyOf | None:
    """Return a task's `key=` option as what a route needs: a constant, or a function of a call's arguments.

    Raises ConfigError for a function with parameters that are not the task's.
    """
    if not callable(key):
        return encode_key(key)
    owner = f"the key of {parameters.task_name}"
    names = _names_of_key(owner, key)
    for name in names:
        if name not in parameters.signature.parameters:
            raise ConfigError(
                f"{owner}: the task has no parameter {name!r}{did_you_mean(name, parameters.signature.parameters)}"
            )
    count = len(parameters.positional)
    quick = parameters.plain and all(name in parameters.positional for name in names) and names
    pick = itemgetter(*map(parameters.positional.index, names)) if quick else None
    is_single = len(names) == 1

    def key_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | None:
        if pick is not None and len(args) == count:
            picked = pick(args)
            made = key(picked) if is_single else key(*picked)
        else:
            bound = parameters.bind(args, kwargs)
            made = key(*[bound[name] for name in names])
        return _encode_made_key(owner, made)

    return key_of


def _encode_made_key(owner: str, key: Any) -> bytes | None:
    try:
        return encode_key(key)
    except ConfigError as error:
        raise ArgumentsError(f"{owner}: {error}") from None


def _names_of_key(owner: str, key: Callable[..., Any]) -> list[str]:
    import inspect

    try:
        parameters = inspect.signature(key).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{owner}: {error}") from error
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise ConfigError(f"{owner}: name the arguments it needs; {parameter} is not a name")
    return [parameter.name for parameter in parameters]
