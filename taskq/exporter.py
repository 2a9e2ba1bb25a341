"""How far groups are behind, as the broker alone knows it: no worker is asked, and none need run.

Everything is computed when somebody asks, from three things the broker keeps: where a partition ends, how far a group
has committed in it, and the timestamp of the oldest record it has not finished. So what is shown is at most one commit
interval (100 ms) behind the workers' own numbers, and it can't drift.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from attrs import frozen

from taskq.broker.port import Admin, Broker, Committed, GroupDescription, PartitionBounds, Reader, TopicPartition
from taskq.definitions import BACKLOG, BACKLOG_AGE_SECONDS, DEAD_LETTERS, DELAYED, LOG_BYTES
from taskq.errors import BrokerError, TopicNotFound
from taskq.ladder import TOPICS
from taskq.metrics import Sample
from taskq.topics import INTERNAL
from taskq.worker.deadoffice import RESOLVED
from taskq.worker.delays import GROUP as MOVERS
from taskq.worker.gauges import dead_letters
from taskq.worker.http import Health
from taskq.worker.progress import Progress
from taskq.worker.standing import progress_of

_log = logging.getLogger(__name__)


@frozen
class PartitionBacklog:
    """What a group has not finished of one partition."""

    tp: TopicPartition
    bounds: PartitionBounds
    committed: int | None
    """The lowest unfinished offset as committed; None: never."""
    finished_above: int
    backlog: int
    oldest_ms: int | None
    """Timestamp of the oldest unfinished record, in ms since the epoch; None if there is none, or it can't be read."""
    owner: str | None
    """The member that holds the partition now."""

    def age_seconds(self, now: float) -> float | None:
        """Age of the oldest unfinished record at `now` (seconds since the epoch); 0 if all are finished."""
        if self.oldest_ms is None:
            return None if self.backlog else 0.0
        return max(0.0, now - self.oldest_ms / 1000)


def describe_group(admin: Admin, group: str) -> GroupDescription:
    """As the broker does, but a group it has never seen is one without members and progress."""
    if group in admin.groups():
        return admin.describe_group(group)
    return GroupDescription(group, {}, {}, {})


def is_internal(name: str) -> bool:
    """Whether a group or a topic is taskq's own: people see them when they ask for all."""
    return name.startswith(INTERNAL)


def topics_of(group: GroupDescription) -> set[str]:
    """The topics it reads, as far as the broker can know: those of its members, and those it made progress in."""
    subscribed = {topic for topics in group.members.values() for topic in topics}
    return subscribed | {tp.topic for tp in group.committed}


def partition_backlogs(
    admin: Admin, reader: Reader, group: GroupDescription, topics: Iterable[str]
) -> list[PartitionBacklog]:
    """What `group` has not finished of `topics`, partition by partition. Topics that don't exist are left out."""
    found = []
    for topic in sorted(topics):
        try:
            partitions = admin.describe_topic(topic).partitions
        except TopicNotFound:
            continue
        for number, bounds in enumerate(partitions):
            found.append(_partition_backlog(reader, group, TopicPartition(topic, number), bounds))
    return found


def _partition_backlog(
    reader: Reader, group: GroupDescription, tp: TopicPartition, bounds: PartitionBounds
) -> PartitionBacklog:
    committed = group.committed.get(tp)
    progress = _progress(group.name, tp, committed or Committed(bounds.start))
    unfinished = [range(max(part.start, bounds.start), part.stop) for part in progress.unfinished(bounds.end)]
    oldest = next((part.start for part in unfinished if part), None)
    return PartitionBacklog(
        tp,
        bounds,
        committed.offset if committed else None,
        progress.finished_above,
        sum(map(len, unfinished)),
        None if oldest is None else _timestamp_ms(reader, tp, oldest),
        group.owners.get(tp),
    )


def _progress(group: str, tp: TopicPartition, committed: Committed) -> Progress:
    try:
        return progress_of(committed.offset, committed.metadata)
    except ValueError:
        _log.warning("group %s: the progress committed for %s can't be read beyond its offset", group, tp)
        return Progress(committed.offset)


def _timestamp_ms(reader: Reader, tp: TopicPartition, offset: int) -> int | None:
    try:
        records = reader.read(tp, offset, bytes_max=1)
    except BrokerError as error:
        _log.warning("the oldest unfinished record of %s can't be read: %s", tp, error)
        return None
    return records[0].timestamp_ms if records else None


def delayed(admin: Admin) -> dict[str, int]:
    """How many invocations wait on each rung of the ladder that there is."""
    committed = describe_group(admin, MOVERS).committed
    waiting: dict[str, int] = {}
    for topic in TOPICS:
        with suppress(TopicNotFound):
            for number, bounds in enumerate(admin.describe_topic(topic).partitions):
                tp = TopicPartition(topic, number)
                progress = _progress(MOVERS, tp, committed.get(tp, Committed(bounds.start)))
                left = bounds.end - progress.low - progress.finished_above
                waiting[topic] = waiting.get(topic, 0) + max(0, left)
    return waiting


class Exporter:
    """A source of metrics about a whole broker: `metrics.add_source(exporter.samples)`. Thread-safe.

    `groups` maps further groups to their topics: those of an app, which count even before they have ever run. taskq's
    own groups are left out unless `internal`: what waits for them is no backlog, and is shown as what is delayed.
    """

    def __init__(self, broker: Broker, groups: Mapping[str, Iterable[str]], *, internal: bool = False) -> None:
        self._admin = broker.admin()
        self._reader = broker.reader()
        self._groups = {group: frozenset(topics) for group, topics in groups.items()}
        self._internal = internal

    def samples(self) -> Iterator[Sample]:
        """All there is to tell now. Raises BrokerError."""
        now = time.time()
        resolved = self._admin.describe_group(RESOLVED).committed
        for name in sorted({*self._admin.groups(), *self._groups} - {RESOLVED}):
            dead = dead_letters(self._admin, name, resolved)
            if is_internal(name) and not self._internal:
                if dead:  # somebody must hear of those all the same
                    yield Sample(DEAD_LETTERS, (name,), dead)
                continue
            group = describe_group(self._admin, name)
            topics = topics_of(group) | self._groups.get(name, frozenset())
            for part in partition_backlogs(self._admin, self._reader, group, topics):
                labels = (name, part.tp.topic, str(part.tp.partition))
                yield Sample(BACKLOG, labels, part.backlog)
                age = part.age_seconds(now)
                if age is not None:
                    yield Sample(BACKLOG_AGE_SECONDS, labels, age)
            yield Sample(DEAD_LETTERS, (name,), dead)
        for topic, count in delayed(self._admin).items():
            yield Sample(DELAYED, (topic,), count)
        for topic in self._admin.topics():
            with suppress(TopicNotFound):  # deleted meanwhile
                for number, size in enumerate(self._admin.describe_topic(topic).size_bytes):
                    yield Sample(LOG_BYTES, (topic, str(number)), size)

    def ready(self) -> Health:
        """Ready if the broker answers."""
        try:
            self._admin.topics()
        except BrokerError as error:
            return Health((f"the broker can't be read: {error}",))
        return Health()
