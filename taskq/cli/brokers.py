"""Opening the broker for a command, and finding in it what the command line names."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from taskq.broker import connect
from taskq.broker.port import Admin, Broker
from taskq.config import Settings, did_you_mean, load_settings
from taskq.errors import TaskqError, TopicNotFound


def settings_of(broker: str | None) -> Settings:
    """The settings, with what `--broker` says."""
    return load_settings(broker=broker)


@contextmanager
def opened(broker: str | None) -> Generator[Broker]:
    """The broker, for as long as the command looks at it."""
    found = connect(settings_of(broker))
    try:
        yield found
    finally:
        found.close()


def known_topic(admin: Admin, name: str) -> str:
    """`name`, if there is such a topic; else TopicNotFound, naming near ones."""
    names = admin.topics()
    if name not in names:
        raise TopicNotFound(f"there is no topic {name!r}{did_you_mean(name, names)}")
    return name


def known_group(admin: Admin, name: str) -> str:
    """`name`, if there is such a group; else TaskqError, naming near ones."""
    names = admin.groups()
    if name not in names:
        raise TaskqError(f"no group {name!r} has ever run on this broker{did_you_mean(name, names)}")
    return name
