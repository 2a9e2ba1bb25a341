"""What may be set for a topic: how long its records are kept, how large its segments are. Pure.

The names are Kafka's, with underscores. What is given is kept with the topic, and the rest is as here; so a later
version may choose better defaults for all topics that don't say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from attrs import Factory, asdict, evolve, fields_dict, frozen

from taskq.errors import ConfigError

INTERNAL: Final = "__taskq."
"""How the names of topics begin that taskq itself makes."""

DEAD: Final = ".dead"
"""How the names of topics end that hold what a group gave up on."""

DELAY: Final = f"{INTERNAL}delay."
"""How the names of the topics begin in which invocations wait until they are due (`taskq.ladder`)."""

CONTROL: Final = f"{INTERNAL}control"
"""What workers are told: which invocations are cancelled."""

CONTROL_MS: Final = 30 * 24 * 60 * 60 * 1000
"""How long they remember it."""

RETRY: Final = ".retry"
"""How the names of topics end that hold what a group tries again."""

_DAY_MS: Final = 24 * 60 * 60 * 1000
_NUMBER_MAX: Final = (1 << 63) - 1
_SEGMENT_BYTES_MAX: Final = (1 << 31) - 1  # positions must fit the index's int32
_SEGMENT_BYTES_MIN: Final = 1024
_UNITS_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": _DAY_MS, "w": 7 * _DAY_MS}
_UNITS_BYTES: Final = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_AMOUNT: Final = re.compile(r"(\d+)\s*([A-Za-z]*)", re.ASCII)


@frozen
class TopicSettings:
    """How a topic is kept."""

    retention_ms: int = 7 * _DAY_MS
    """Segments whose records are all older than this are removed. -1: never."""
    retention_bytes: int = -1
    """A partition's oldest segments are removed while it would have no less than this without them. -1: never."""
    segment_bytes: int = 1 << 30
    """A segment is closed when the next batch would make it larger."""
    segment_ms: int = 7 * _DAY_MS
    """A segment is closed when its first record is older than this."""
    cleanup_policy: str = "delete"
    """"delete": old segments go. "compact": of each key the last record stays."""
    delete_retention_ms: int = _DAY_MS
    """How long compaction keeps a record without a value, which says that its key is gone."""
    unfinished: str = "keep"
    """"keep": a segment goes only when all groups that have ever committed in the topic have finished all of it, and
    none while no group has. "delete": it goes even if nobody has run what is in it."""

    def __attrs_post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise ConfigError(f"{name} {value!r} is not a whole number from {least} to {most}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} {getattr(self, name)!r} is not one of: {', '.join(known)}")


_RANGES: Mapping[str, tuple[int, int]] = {
    "retention_ms": (-1, _NUMBER_MAX),
    "retention_bytes": (-1, _NUMBER_MAX),
    "segment_bytes": (_SEGMENT_BYTES_MIN, _SEGMENT_BYTES_MAX),
    "segment_ms": (1, _NUMBER_MAX),
    "delete_retention_ms": (0, _NUMBER_MAX),
}
_CHOICES: Mapping[str, tuple[str, ...]] = {"cleanup_policy": ("delete", "compact"), "unfinished": ("keep", "delete")}

SETTING_NAMES: Final = tuple(fields_dict(TopicSettings))


@frozen
class TopicConfig:
    """What a project says of a topic, for when it is created."""

    partitions: int | None = None
    settings: Mapping[str, int | str] = Factory(lambda: MappingProxyType({}))
    """Those that are said."""
    replication: int = -1
    """How many brokers of a cluster keep each partition. -1: as for all topics."""


def own_config(topic: str) -> TopicConfig:
    """How a topic is created that nobody configured: those that taskq itself makes have their own ways."""
    if topic == CONTROL:
        return TopicConfig(1, MappingProxyType({"retention_ms": CONTROL_MS, "unfinished": "delete"}))
    if topic.startswith(DELAY):  # what has moved on need not stay
        return TopicConfig(2, MappingProxyType({"retention_ms": 60_000, "segment_ms": 600_000}))
    return TopicConfig()


def retry_topic(group: str) -> str:
    """Where a group tries again what failed: another group's failure is none of its own."""
    return f"{group}{RETRY}"


def dead_topic(group: str) -> str:
    """What a group gave up on."""
    return f"{group}{DEAD}"


def check_not_a_groups_own(topics: Iterable[str], groups: Iterable[str]) -> None:
    """Raise ConfigError if tasks are on a topic that a group fills with what failed: it would go round and round."""
    for topic in sorted(set(topics).intersection(map(retry_topic, groups))):
        raise ConfigError(f"there are tasks on the topic {topic!r}, which is a group's own, for what has failed in it")


def parse_settings(given: Mapping[str, Any]) -> dict[str, int | str]:
    """The settings that are given, as `TopicSettings` has them. Raises ConfigError for one that is none, or malformed.

    A time may be text with a unit (`7d`, `12h`, `30m`, `90s`, `500ms`), a size too (`512MiB`, `1GB`).
    """
    parsed = {name: _parse(name, value) for name, value in given.items()}
    TopicSettings(**parsed)  # type: ignore[arg-type]
    return parsed


def check_said(topic: str, settings: Mapping[str, int | str]) -> None:
    """Raise ConfigError if a person says of a topic of taskq's own what would lose what is in it."""
    is_own = topic.startswith(INTERNAL) or topic.endswith((DEAD, RETRY))
    if is_own and settings.get("cleanup_policy") == "compact":
        raise ConfigError(
            f"{topic!r} can't have cleanup_policy=compact: all of what is in it counts, with a key or none"
        )
    if topic.endswith(DEAD) and settings.get("unfinished") == "delete":
        raise ConfigError(
            f"{topic!r} can't have unfinished=delete: dead letters are kept until somebody has retried or purged them"
        )


def settings_for(topic: str, given: Mapping[str, int | str]) -> TopicSettings:
    """What holds for a topic of which `given` was said. Dead letters are kept until a person purges them."""
    return evolve(TopicSettings(retention_ms=-1) if topic.endswith(DEAD) else TopicSettings(), **given)  # type: ignore[arg-type]


def show_settings(settings: TopicSettings) -> dict[str, int | str]:
    """All of them, by name."""
    return asdict(settings)


def _parse(name: str, value: Any) -> int | str:
    if name in _CHOICES:
        return str(value)
    if name not in _RANGES:
        raise ConfigError(f"a topic has no setting {name!r}; there are: {', '.join(SETTING_NAMES)}")
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if value == "-1":
        return -1
    return _amount(name, value, _UNITS_MS if name.endswith("_ms") else _UNITS_BYTES)


def parse_size(name: str, value: Any) -> int:
    """Read a number of bytes, which may be text with a unit (`512MiB`, `1GB`). Raises ConfigError."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return _amount(name, value, _UNITS_BYTES)


def _amount(name: str, value: Any, units: Mapping[str, int]) -> int:
    amount = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = amount[2].lower() if amount else ""
    if amount is None or (unit and unit not in units):
        example = "7d, 12h, 30m, 90s, 500ms" if units is _UNITS_MS else "1GiB, 512MiB, 64KiB, 1GB"
        raise ConfigError(f"{name} {value!r} is neither a whole number nor like {example}")
    return int(amount[1]) * (units[unit] if unit else 1)
