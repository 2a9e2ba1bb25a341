"""Options of tasks, events and calls: what there is, and what was meant.

Nothing is ever ignored: an option that taskq doesn't know, or a value that makes no sense, is a ConfigError where it is
said.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from msgspec import Struct

from taskq.broker.port import Headers
from taskq.config import check_group, check_topic_of_calls, did_you_mean
from taskq.errors import ConfigError
from taskq.message import Id, encode_headers, parse_id
from taskq.retry import DELAY_S_MAX, Retry, check_delay
from taskq.serializers import SERIALIZERS
from taskq.topics import INTERNAL

NAME_CHARACTERS_MAX = 250

ORDERS: Final = ("none", "key", "partition")
EXECUTORS: Final = ("auto", "process")

PRIORITIES: Final = ("high", "normal", "low")
"""Each but "normal" has a topic of its own beside the task's."""

MAX_DELIVERIES: Final = 3
"""How many workers an invocation may kill before it is given up."""

_PERIODS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SECONDS_MAX = 1e12
"""Further from 1970 than any moment that a datetime can say."""
_RATE = re.compile(r"(\d+(?:\.\d+)?)(?:/([smhd]))?", re.ASCII)

Key = Callable[..., Any] | str
"""A record's key: constant, or made from the arguments it names as parameters."""

SerializerName = Literal["msgpack", "json", "cloudpickle"]


def check_options(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError unless all options given are known ones."""
    for option in given:
        if option not in known:
            raise ConfigError(f"{where}: there is no option {option!r}{did_you_mean(option, known)}")


def check_name(kind: str, name: object) -> str:
    """Return `name` if a task or event may be called that; raise ConfigError otherwise."""
    if isinstance(name, str) and 0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable() and name == name.strip():
        return name
    raise ConfigError(
        f"{name!r} can't be the name of {kind}: use a string of 1 to {NAME_CHARACTERS_MAX} printable characters"
    )


def _check_choice(option: str, value: object, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{option}={value!r} is not one of: {', '.join(choices)}")


# Structs, since every `import taskq` defines these classes, and an attrs class takes many times as long to define.


class TaskOptions(Struct, frozen=True):
    """What `@task(...)` says. Without a name: the function's. Without a topic or group: the app's default."""

    name: str | None = None
    topic: str | None = None
    group: str | None = None
    key: Key | None = None
    serializer: str = "msgpack"
    order: str = "none"
    executor: str = "auto"
    retry: Retry | None = None
    """None: as the app says."""
    timeout: float | None = None
    """Seconds that a run may take."""
    expires: float | None = None
    """Seconds after publishing, after which it is not started any more."""
    max_deliveries: int = MAX_DELIVERIES
    at_most_once: bool = False
    rate_limit: str | float | None = None
    """How many may start in a period, in the whole group: "100/s", "10/m"; a number is per second."""
    concurrency: int | None = None
    """How many may run at once in a worker process."""
    priority: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("a task", self.name)
        if self.topic is not None:
            check_topic_of_calls(self.topic)
        if self.group is not None and check_group(self.group).startswith(INTERNAL):
            raise ConfigError(f"group={self.group!r}: names that begin with {INTERNAL} are for taskq's own groups")
        if self.key is not None and not isinstance(self.key, str) and not callable(self.key):
            raise ConfigError(f"key={self.key!r} is neither a string nor a function of the task's arguments")
        _check_choice("serializer", self.serializer, SERIALIZERS)
        _check_choice("order", self.order, ORDERS)
        _check_choice("executor", self.executor, EXECUTORS)
        if self.priority is not None:
            _check_choice("priority", self.priority, PRIORITIES)
            if self.topic is not None:
                for priority in PRIORITIES:
                    check_topic_of_calls(priority_topic(self.topic, priority))
        self._check_limits()
        self._check_once()

    def _check_limits(self) -> None:
        for name in ("timeout", "expires"):
            if getattr(self, name) is not None and not check_delay(name, getattr(self, name)):
                raise ConfigError(f"{name}=0 leaves no time at all")
        if type(self.max_deliveries) is not int or not 2 <= self.max_deliveries <= 100:
            raise ConfigError(
                f"max_deliveries={self.max_deliveries!r} is not a whole number from 2 to 100; a task that may not be "
                "delivered twice is at_most_once=True"
            )
        if self.concurrency is not None and (type(self.concurrency) is not int or self.concurrency < 1):
            raise ConfigError(f"concurrency={self.concurrency!r} is not a whole number from 1 on")
        if self.rate_limit is not None:
            parse_rate(self.rate_limit)

    def _check_once(self) -> None:
        if self.retry is not None and type(self.retry) is not Retry:
            raise ConfigError(f"retry={self.retry!r} is not a policy such as Retry(5, base=1.0)")
        if type(self.at_most_once) is not bool:
            raise ConfigError(f"at_most_once={self.at_most_once!r} is neither True nor False")
        if self.at_most_once and self.retry is not None and self.retry.max:
            raise ConfigError("at_most_once=True with retry= would run an invocation more than once")


def task_options(where: str, given: Mapping[str, Any]) -> TaskOptions:
    """Check what a decorator was given. Raises ConfigError that says `where`."""
    check_options(where, given, TaskOptions.__struct_fields__)
    try:
        return TaskOptions(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


class CallOptions(Struct, frozen=True):
    """What `task.options(...)` says. What is None is as the task says."""

    key: bytes | None = None
    topic: str | None = None
    ident: Id | None = None
    headers: Headers = ()
    due: Moment | None = None
    """When to run it; None: now."""
    expires: Moment | None = None
    priority: str | None = None


class Moment(Struct, frozen=True):
    """A moment that is fixed, or a while after publishing. In milliseconds; at least one is 0."""

    after_ms: int = 0
    at_ms: int = 0

    def seen_at(self, now_ms: int) -> int:
        """Milliseconds since 1970, if what it is about is published now."""
        return self.at_ms or now_ms + self.after_ms


CALL_OPTIONS: Final = ("key", "topic", "id", "headers", "delay", "at", "expires", "priority")


def call_options(where: str, given: Mapping[str, Any]) -> CallOptions:
    """Check what `options()` was given. Raises ConfigError that says `where`."""
    check_options(where, given, CALL_OPTIONS)
    given = {option: value for option, value in given.items() if value is not None}
    try:
        if "delay" in given and "at" in given:
            raise ConfigError("delay= and at= both say when; give one")
        due = [parse_moment(option, given[option]) for option in ("delay", "at") if option in given]
        if "priority" in given:
            _check_choice("priority", given["priority"], PRIORITIES)
        topic = check_topic_of_calls(given["topic"]) if "topic" in given else None
        if topic is not None:
            check_topic_of_calls(priority_topic(topic, given.get("priority")))
        expires = parse_moment("expires", given["expires"]) if "expires" in given else None
        check_in_time(due[0] if due else None, expires)
        return CallOptions(
            key=encode_key(given["key"]) if "key" in given else None,
            topic=topic,
            ident=_parse_new_id(given["id"]) if "id" in given else None,
            headers=encode_headers(given.get("headers", {})),
            due=due[0] if due else None,
            expires=expires,
            priority=given.get("priority"),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _parse_new_id(text: object) -> Id:
    ident = parse_id(text)
    if isinstance(ident, str) and not ident.isprintable():
        raise ConfigError(f"{text!r} can't be an id: people are to read and type it, so use printable characters")
    return ident


def parse_moment(option: str, value: object) -> Moment:
    """Read a number of seconds or a timedelta from now, or a datetime. For "at", numbers are seconds since 1970.

    Raises ConfigError, also for a moment more than a year ahead.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ConfigError(f"{option}={value!r} has no time zone; say datetime.now(timezone.utc) + ... or the like")
        return _fixed(option, value.timestamp())
    if isinstance(value, timedelta):
        if option == "at":
            raise ConfigError(f"at={value!r} is a while and no moment; say delay=")
        value = value.total_seconds()
    if option == "at" and isinstance(value, int | float) and not isinstance(value, bool):
        return _fixed(option, value)
    return Moment(after_ms=math.ceil(check_delay(option, value) * 1000))


def _fixed(option: str, seconds: float) -> Moment:
    if not abs(seconds) < _SECONDS_MAX:  # also if it is no number at all
        raise ConfigError(f"{option}={seconds!r} is no moment in seconds since 1970")
    check_delay(f"{option}, from now on", max(0.0, seconds - time.time()))
    return Moment(at_ms=max(1, math.ceil(seconds * 1000)))


def check_in_time(due: Moment | None, expires: Moment | None) -> None:
    """Raise ConfigError for a call that could never be started, if it were published now."""
    if expires is None:
        return
    now_ms = int(time.time() * 1000)
    expires_ms = expires.seen_at(now_ms)
    if expires_ms <= now_ms:
        raise ConfigError("expires= leaves no time at all: it could never be started")
    if due is not None and expires_ms <= due.seen_at(now_ms):
        raise ConfigError("it expires before it is due: it could never be started")


def parse_rate(rate: object) -> float:
    """Read a rate limit: starts a second. Raises ConfigError."""
    number: float | None = None
    if isinstance(rate, str) and (match := _RATE.fullmatch(rate.replace(" ", ""))):
        number = float(match[1]) / _PERIODS_S[match[2] or "s"]
    elif isinstance(rate, int | float) and not isinstance(rate, bool):
        number = rate  # not a float yet, which not every int can be
    if number is None or not 1 / DELAY_S_MAX <= number <= 1e6:
        raise ConfigError(f"rate_limit={rate!r} is not a rate like '100/s', '10/m', '500/h', or a number a second")
    return float(number)


def priority_topic(topic: str, priority: str | None) -> str:
    """Where invocations of a priority go."""
    return topic if priority in (None, "normal") else f"{topic}.{priority}"


def encode_key(key: Any) -> bytes | None:
    """Return a record's key: what is not bytes as its text. None is no key. Raises ConfigError."""
    if key is None or isinstance(key, bytes):
        return key
    if isinstance(key, _KEY_TYPES) and not isinstance(key, bool):
        try:
            return str(key).encode()
        except UnicodeEncodeError:
            pass
    raise ConfigError(f"{key!r} can't be a key: use a string, bytes, an int, a UUID or None")


_KEY_TYPES = (str, int, UUID)
