"""Settings: from arguments, `TASKQ_*` variables and `[tool.taskq]` in pyproject.toml, in that order of strength.

This module is the only reader of the environment and of pyproject.toml. A relative path is relative to what says it: in
pyproject.toml, to that file's folder; in a variable or an argument, to the working directory. So a web app and a worker
that are started in different folders of one project share one log.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import Factory, evolve, field, frozen

from taskq import urls
from taskq.errors import ConfigError
from taskq.topics import DEAD, INTERNAL, SETTING_NAMES, TopicConfig, check_said, parse_settings, parse_size

SECRET_BYTES_MIN = 16
"""Shorter keys can be guessed. RFC 2104 advises the length of the hash, which is 32."""

GROUP_CHARACTERS_MAX = 240
"""A group's own topics, `<group>.retry` and `<group>.dead`, must be topic names too."""

TOPIC_CHARACTERS_MAX = 249
"""As in Kafka, so that any topic can move there: its file names add a few characters, and file systems stop at 255."""

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("text", "json")

_TABLES = ("topics", "kafka")
"""Settings that an environment variable can't hold."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_PROJECT_FILE = "pyproject.toml"


@frozen
class Durability:
    """When a published record is on the disk itself, not only with the operating system.

    kind      survives a crash of any process   survives a power cut
    os        yes                               what the system has written back, often after 30 s
    interval  yes                               all but the last `interval_ms`
    fsync     yes                               yes
    """

    kind: str
    interval_ms: int = 0

    @classmethod
    def parse(cls, text: str) -> Durability:
        """Read "os", "fsync" or "interval:MILLISECONDS". Raises ConfigError."""
        kind, _, interval = text.partition(":")
        if text in ("os", "fsync"):
            return cls(text)
        if kind == "interval" and interval.isascii() and interval.isdigit() and 1 <= int(interval) <= 60_000:
            return cls(kind, int(interval))
        raise ConfigError(f"durability {text!r} is not one of: os, fsync, interval:MILLISECONDS (1 to 60000)")


@frozen
class Settings:
    """What taskq is told. Made by `load_settings`; a field `x` is `TASKQ_X` and `[tool.taskq] x`, but for `secrets`."""

    broker: str
    """Absolute URL: file:///path, memory: or kafka://host:port,..."""
    app: str | None = None
    """`module` or `module:attribute` of the TaskQ that commands use."""
    durability: str = "interval:100"
    """See `Durability`."""
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    """Keys of signed messages: the first signs, all verify. `TASKQ_SECRET`, separated by commas."""
    default_group: str = "default"
    default_topic: str = "default"
    partitions: int = 8
    """Of a topic that is created on first use, unless `topics` says otherwise."""
    topics: Mapping[str, TopicConfig] = Factory(lambda: MappingProxyType({}))
    """How topics are created: `[tool.taskq.topics.NAME]` with `partitions` and any of `TopicSettings`."""
    offset_reset: str = "earliest"
    """Where a group goes on whose next records have been removed: at the start that is left ("earliest"), or nowhere
    ("error")."""
    commit_interval_ms: int = 100
    concurrency: int = 16
    """Invocations a worker process runs at once."""
    in_flight_max: int = 8192
    """Invocations a worker process holds: those that run and those fetched ahead."""
    drain_timeout_s: float = 30.0
    """How long a worker that is told to stop waits for what runs."""
    max_rss: int | None = None
    """Bytes of memory at which `taskq worker` replaces a worker process with a new one."""
    max_invocations: int | None = None
    """How many invocations a worker process of `taskq worker` runs before a new one takes its place."""
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 9464
    """0: any free port."""
    log_level: str = "info"
    """Of what a worker logs: debug, info, warning, error or critical. At debug, a line for each invocation."""
    log_format: str = "text"
    """Or "json": one object a line, with the fields that programs look for."""
    kafka: Mapping[str, str] = field(factory=lambda: MappingProxyType({}), repr=False)
    """librdkafka's settings, `[tool.taskq.kafka]`. What the URL of a Kafka broker sets is stronger."""
    replication: int = -1
    """How many brokers of a cluster keep each partition of a topic that is created. -1: as they are configured."""
    directory_mode: str = "private"
    """Of an embedded broker's directory: "private" (0700, files 0600) or "group" (0770, files 0660)."""


def load_settings(
    *, cwd: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None, **overrides: Any
) -> Settings:
    """Gather the settings. An override that is None counts as not given.

    Raises ConfigError for an unknown key or a malformed value, naming the file or variable it stands in.
    """
    folder = _working_directory() if cwd is None else Path(cwd).absolute()
    project = _nearest_project(folder)
    values: dict[str, Any] = {"broker": (project.parent if project else folder).joinpath(".taskq").as_uri()}
    if project:
        values.update(_from_project(project))
    values.update(_from_environment(os.environ if environ is None else environ, folder))
    values.update(_from_arguments(overrides, folder))
    return Settings(**values)


def with_overrides(settings: Settings, **overrides: Any) -> Settings:
    """Return `settings` with some replaced, as by an argument of `load_settings`. None counts as not given."""
    return evolve(settings, **_from_arguments(overrides, _working_directory()))


def plain_settings(settings: Settings) -> dict[str, Any]:
    """Return them as overrides of plain values: what another process needs for `with_overrides` to make the same."""
    topics = {
        topic: {
            **({"partitions": config.partitions} if config.partitions else {}),
            **({"replication": config.replication} if config.replication > 0 else {}),
            **config.settings,
        }
        for topic, config in settings.topics.items()
    }
    plain = {name: getattr(settings, name) for name in _PARSERS}
    return {**plain, "topics": {topic: said for topic, said in topics.items() if said}, "kafka": dict(settings.kafka)}


def check_topic(name: object) -> str:
    """Return `name` if a topic may be called that; raise ConfigError otherwise."""
    return _check_name("topic", name, TOPIC_CHARACTERS_MAX)


def check_new_topic(name: object) -> str:
    """Return `name` if a person may create a topic of that name; raise ConfigError otherwise."""
    topic = check_topic(name)
    if topic.startswith(INTERNAL):
        raise ConfigError(f"{topic!r} can't be created: names that begin with {INTERNAL} are for taskq's own topics")
    return topic


def check_topic_of_calls(name: object) -> str:
    """Return `name` if invocations may be published to a topic of it; raise ConfigError otherwise."""
    topic = check_topic(name)
    if topic.startswith(INTERNAL) or topic.endswith(DEAD):  # what is in `<group>.retry` does run
        raise ConfigError(f"nothing would run in the topic {topic!r}: names {INTERNAL}* and *{DEAD} are taskq's own")
    return topic


def check_group(name: object) -> str:
    """Return `name` if a group may be called that; raise ConfigError otherwise."""
    return _check_name("group", name, GROUP_CHARACTERS_MAX)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message: names near to `name`, or else all there are."""
    from difflib import get_close_matches

    known = list(known)
    near = get_close_matches(name, known, n=3)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are: {', '.join(sorted(known))}" if known else ""


def _check_name(kind: str, name: object, characters_max: int) -> str:
    if isinstance(name, str) and _NAME.fullmatch(name) and len(name) <= characters_max and name not in (".", ".."):
        return name
    raise ConfigError(
        f"{name!r} can't be the name of a {kind}: use 1 to {characters_max} ASCII letters, digits, '.', '_' and '-'"
    )


# --- where settings come from


def _from_project(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} can't be read: {error}") from error
    tool = document.get("tool")
    table = tool.get("taskq", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: [tool.taskq] is not a table")
    if "secret" in table or "secrets" in table:
        raise ConfigError(f"{file}: a secret does not belong in a file that is shared; set TASKQ_SECRET")
    known = [name for name in _PARSERS if name != "secrets"]
    for key in table:
        if key not in known:
            raise ConfigError(f"{file}: [tool.taskq] has no setting {key!r}{did_you_mean(key, known)}")
    return {key: _parse(f"{file}: [tool.taskq] {key}", key, value, file.parent) for key, value in table.items()}


def _from_environment(environ: Mapping[str, str], folder: Path) -> dict[str, Any]:
    values = {}
    for name in _PARSERS:
        variable = "TASKQ_SECRET" if name == "secrets" else f"TASKQ_{name.upper()}"
        text = environ.get(variable, "")
        if text and name not in _TABLES:
            values[name] = _parse(variable, name, text, folder)
    return values


def _from_arguments(overrides: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    for name in overrides:
        if name not in _PARSERS:
            raise ConfigError(f"there is no setting {name!r}{did_you_mean(name, _PARSERS)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return {name: _parse(name, name, value, folder) for name, value in given.items()}


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError as error:
        raise ConfigError("the working directory has been deleted; start from another") from error


def _nearest_project(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        file = parent / _PROJECT_FILE
        if file.is_file():
            return file
    return None


# --- values


def _parse(source: str, name: str, value: Any, folder: Path) -> Any:
    try:
        return _PARSERS[name](value, folder)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


def _broker_url(value: Any, folder: Path) -> str:
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{value!r} is neither a path nor a broker URL")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(os.path.normpath(folder / Path(text).expanduser())).as_uri()
    known = {"file": urls.of_file, "memory": urls.of_memory, "kafka": urls.of_kafka}
    parse = known.get(scheme[1].lower())
    if parse is None:
        raise ConfigError(f"{text!r}: no broker is called {scheme[1]!r}{did_you_mean(scheme[1], known)}")
    return parse(text)


def _secrets(value: Any, folder: Path) -> tuple[bytes, ...]:
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, bytes) else list(value)
    keys = tuple(part.strip().encode() if isinstance(part, str) else part for part in parts)
    if not all(isinstance(key, bytes) and len(key) >= SECRET_BYTES_MIN for key in keys):
        raise ConfigError(
            f"a secret has at least {SECRET_BYTES_MIN} bytes; make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return keys


def _topics(value: Any, folder: Path) -> Mapping[str, TopicConfig]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} is not a table of topics")
    topics = {check_topic(topic): _topic_config(topic, options) for topic, options in value.items()}
    for topic, config in topics.items():
        check_said(topic, config.settings)
    return MappingProxyType(topics)


def _topic_config(topic: str, options: Any) -> TopicConfig:
    if isinstance(options, TopicConfig):
        return options
    if not isinstance(options, Mapping):
        return TopicConfig(_partitions(options, Path()))
    known = ("partitions", "replication", *SETTING_NAMES)
    for key in options:
        if key not in known:
            raise ConfigError(f"topic {topic!r} has no setting {key!r}{did_you_mean(key, known)}")
    if not options:
        raise ConfigError(f"topic {topic!r} does not say anything; it may say: {', '.join(known)}")
    count = _partitions(options["partitions"], Path()) if "partitions" in options else None
    copies: int = _replication(options.get("replication", -1), Path())
    settings = parse_settings({key: value for key, value in options.items() if key in SETTING_NAMES})
    return TopicConfig(count, MappingProxyType(settings), copies)


def _kafka(value: Any, folder: Path) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{value!r} is not a table of librdkafka's settings")
    return MappingProxyType(urls.check_kafka(value))


def _number(least: int, most: int, kind: type[int | float] = int) -> Callable[[Any, Path], Any]:
    def parse(value: Any, folder: Path) -> Any:
        number = None
        with suppress(TypeError, ValueError, OverflowError):
            number = kind(value)
        sound = number is not None and least <= number <= most and (number == value or isinstance(value, str))
        if not sound or isinstance(value, bool):
            raise ConfigError(f"{value!r} is not a {'whole ' if kind is int else ''}number from {least} to {most}")
        return number

    return parse


def _text(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{value!r} is not a string with something in it")
    return value.strip()


def _size(least: int) -> Callable[[Any, Path], int]:
    def parse(value: Any, folder: Path) -> int:
        size = parse_size("the size", value)
        if size < least:
            raise ConfigError(f"{value!r} is less than {least >> 20}MiB")
        return size

    return parse


def _durability(value: Any, folder: Path) -> str:
    text = _text(value, folder)
    Durability.parse(text)
    return text


def _one_of(*known: str) -> Callable[[Any, Path], str]:
    def parse(value: Any, folder: Path) -> str:
        if value not in known:
            raise ConfigError(f"{value!r} is not one of: {', '.join(known)}")
        return str(value)

    return parse


_replication = _number(-1, 100)
_partitions = _number(1, 10_000)

_PARSERS: Mapping[str, Callable[[Any, Path], Any]] = {
    "broker": _broker_url,
    "app": _text,
    "durability": _durability,
    "secrets": _secrets,
    "default_group": lambda value, folder: check_group(value),
    "default_topic": lambda value, folder: check_topic_of_calls(value),
    "partitions": _partitions,
    "replication": _replication,
    "topics": _topics,
    "kafka": _kafka,
    "commit_interval_ms": _number(1, 60_000),
    "concurrency": _number(1, 10_000),
    "in_flight_max": _number(1, 1_000_000),
    "drain_timeout_s": _number(0, 86_400, float),
    "max_rss": _size(1 << 20),
    "max_invocations": _number(1, 1 << 62),
    "metrics_host": _text,
    "metrics_port": _number(0, 65_535),
    "log_level": _one_of(*LOG_LEVELS),
    "log_format": _one_of(*LOG_FORMATS),
    "directory_mode": _one_of("private", "group"),
    "offset_reset": _one_of("earliest", "error"),
}
