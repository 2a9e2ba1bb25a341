"""What a worker shows of its own state at a scrape: its partitions' backlog, what runs, who it is.

Called in the threads of the metrics page while the poller works on: everything read here is one number at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from taskq.broker.port import Admin, Committed, Reader, TopicDescription, TopicPartition
from taskq.definitions import (
    BACKLOG,
    BACKLOG_AGE_SECONDS,
    DEAD_LETTERS,
    LOG_BYTES,
    LOG_UNSYNCED_SECONDS,
    RUNNING,
    STALLED,
    WORKER_INFO,
)
from taskq.errors import BrokerError, TopicNotFound
from taskq.metrics import Sample
from taskq.topics import dead_topic
from taskq.worker.deadoffice import RESOLVED, count_dead
from taskq.worker.work import Item, Work

_PEEK_BYTES = 64 * 1024


def samples(
    group: str,
    works: Iterable[Work],
    is_held_up: bool,
    running: Callable[[], list[Item]],
    reader: Reader,
    admin: Admin,
    info: tuple[str, str],
    unsynced_s: float,
) -> Iterator[Sample]:
    """All gauges of one worker. `is_held_up`: it fetches nothing though some of it is idle (`Poller.is_held_up`).

    `info` is its version and its broker's URL, `unsynced_s` its broker's.
    """
    of_topic: dict[str, list[Work]] = {}
    for work in works:
        of_topic.setdefault(work.tp.topic, []).append(work)
    for topic, held in sorted(of_topic.items()):
        with suppress(TopicNotFound):  # deleted; the poller has not heard of it yet
            yield from _topic_samples(group, held, is_held_up, reader, admin.describe_topic(topic))
    for task, count in Counter(item[0].task.name for item in running()).items():
        yield Sample(RUNNING, (group, task), count)
    yield Sample(DEAD_LETTERS, (group,), dead_letters(admin, group))
    yield Sample(LOG_UNSYNCED_SECONDS, (group,), unsynced_s)
    yield Sample(WORKER_INFO, (group, *info), 1)


def dead_letters(admin: Admin, group: str, resolved: Mapping[TopicPartition, Committed] | None = None) -> int:
    """How many dead letters of a group nobody has retried or purged.

    `resolved` is what the group RESOLVED has committed, for those who ask about many groups.
    """
    topic = dead_topic(group)
    try:
        partitions = admin.describe_topic(topic).partitions
    except TopicNotFound:
        return 0
    if resolved is None:
        resolved = admin.describe_group(RESOLVED).committed
    return sum(
        count_dead(bounds, resolved.get(TopicPartition(topic, number))) for number, bounds in enumerate(partitions)
    )


def _topic_samples(
    group: str, works: Iterable[Work], is_held_up: bool, reader: Reader, topic: TopicDescription
) -> Iterator[Sample]:
    """Of those of its partitions that are held."""
    for work in works:
        number = work.tp.partition
        if number < len(topic.partitions):
            yield from _partition_samples(group, work, is_held_up, reader, topic.partitions[number].end)
        if number < len(topic.size_bytes):
            yield Sample(LOG_BYTES, (topic.name, str(number)), topic.size_bytes[number])


def _partition_samples(group: str, work: Work, is_held_up: bool, reader: Reader, end: int) -> Iterator[Sample]:
    labels = (group, work.tp.topic, str(work.tp.partition))
    low = work.progress.low
    backlog = end - low - work.progress.finished_above
    yield Sample(BACKLOG, labels, max(0, backlog))
    with suppress(BrokerError):  # damage: nobody knows how old it is, and all else is to be seen all the more
        oldest = reader.read(work.tp, low, _PEEK_BYTES) if backlog > 0 else ()
        age = max(0.0, time.time() - oldest[0].timestamp_ms / 1000) if oldest else 0.0
        yield Sample(BACKLOG_AGE_SECONDS, labels, age)
    yield Sample(STALLED, labels, int(work.is_stalled or (is_held_up and backlog > 0)))
