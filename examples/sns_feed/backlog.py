"""How many invocations the workers have not finished, as the broker knows it: no worker is asked, none need run."""

from __future__ import annotations

from taskq.broker.port import Admin, Committed, TopicPartition
from taskq.worker.progress import Progress

TOPIC = GROUP = "feed"


def read_backlog(admin: Admin) -> int:
    """Count what the topic holds and the group has not finished."""
    if TOPIC not in admin.topics():
        return 0
    committed = admin.describe_group(GROUP).committed if GROUP in admin.groups() else {}
    unfinished = 0
    for number, bounds in enumerate(admin.describe_topic(TOPIC).partitions):
        stored = committed.get(TopicPartition(TOPIC, number), Committed(bounds.start))
        progress = Progress.decode(stored.offset, stored.metadata)
        unfinished += bounds.end - progress.low - progress.finished_above
    return unfinished


def members(admin: Admin) -> set[str]:
    """The workers that hold partitions of the topic, once every partition is held."""
    if TOPIC not in admin.topics() or GROUP not in admin.groups():
        return set()
    owners = admin.describe_group(GROUP).owners
    return set(owners.values()) if len(owners) == admin.partitions(TOPIC) else set()
