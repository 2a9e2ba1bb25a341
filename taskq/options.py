"""Options of tasks, events and calls: what there is, what is not there yet, and what was meant.

Nothing is ever ignored: an option that taskq doesn't know, or that this version can't do yet, is a ConfigError where it
is said.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal
from uuid import UUID

from msgspec import Struct

from taskq.broker.port import Headers
from taskq.config import check_group, check_topic, did_you_mean
from taskq.errors import ConfigError
from taskq.message import Id, encode_headers, parse_id
from taskq.serializers import SERIALIZERS

NAME_CHARACTERS_MAX = 250

LATER = frozenset(
    "at at_most_once countdown delay eta expires max_deliveries priority rate_limit retry timeout".split()
)
"""Options that a later version will have."""

Key = Callable[..., Any] | str
"""A record's key: constant, or made from the arguments it names as parameters."""

SerializerName = Literal["msgpack", "json", "cloudpickle"]


def check_options(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ConfigError unless all options given are known ones."""
    for option in given:
        if option in LATER:
            raise ConfigError(f"{where}: the option {option!r} is not available yet in this version")
        if option not in known:
            raise ConfigError(f"{where}: there is no option {option!r}{did_you_mean(option, known)}")


def check_name(kind: str, name: object) -> str:
    """Return `name` if a task or event may be called that; raise ConfigError otherwise."""
    if isinstance(name, str) and 0 < len(name) <= NAME_CHARACTERS_MAX and name.isprintable() and name == name.strip():
        return name
    raise ConfigError(
        f"{name!r} can't be the name of {kind}: use a string of 1 to {NAME_CHARACTERS_MAX} printable characters"
    )


def _check_choice(option: str, value: object, choices: Collection[str], later: Collection[str] = ()) -> None:
    if value in later:
        raise ConfigError(f"{option}={value!r} is not available yet in this version")
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

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("a task", self.name)
        if self.topic is not None:
            check_topic(self.topic)
        if self.group is not None:
            check_group(self.group)
        if self.key is not None and not isinstance(self.key, str) and not callable(self.key):
            raise ConfigError(f"key={self.key!r} is neither a string nor a function of the task's arguments")
        _check_choice("serializer", self.serializer, SERIALIZERS)
        _check_choice("order", self.order, ("none",), later=("key", "partition"))
        _check_choice("executor", self.executor, ("auto",), later=("process",))


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


def call_options(where: str, given: Mapping[str, Any]) -> CallOptions:
    """Check what `options()` was given. Raises ConfigError that says `where`."""
    check_options(where, given, ("key", "topic", "id", "headers"))
    given = {option: value for option, value in given.items() if value is not None}
    try:
        return CallOptions(
            key=encode_key(given["key"]) if "key" in given else None,
            topic=check_topic(given["topic"]) if "topic" in given else None,
            ident=parse_id(given["id"]) if "id" in given else None,
            headers=encode_headers(given.get("headers", {})),
        )
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


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
