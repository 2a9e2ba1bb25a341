"""A member of an embedded group: which partitions it should have, which it has, and reading those.

Every member looks at the same facts (who lives, who owns which partition) and computes the same sticky assignment
(assignment.py). It then takes the leases that are due to it as they come free, and asks its owner to finish with those
that are due to others. Two members may look at different moments and disagree for a while; the lease, a flock, keeps
them apart. Each looks again every TICK_S until it has seen every partition with the owner to whom it is due (were it
content with having its own, one that two of them take for the other's would be nobody's), and every LOOK_S then. A
member that comes, releases or goes in order rings the others, and they look anew as soon as they wait for records; one
that dies is missed at the next tick.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Mapping, Sequence

from taskq.broker.assignment import assign
from taskq.broker.limits import check_progress
from taskq.broker.log import names, offsets
from taskq.broker.log.cursor import Cursor
from taskq.broker.log.directory import DataDirectory
from taskq.broker.log.failures import documented, is_out_of_files, storage_error
from taskq.broker.log.partition import Partition
from taskq.broker.membership import Membership
from taskq.broker.port import Committed, Fetched, Polled, TopicPartition
from taskq.broker.wakeups import GROUP_CHANGED, NEW_RECORDS, Bell, Wakeup
from taskq.errors import BrokerError, CorruptLog, OffsetOutOfRange, StorageError, TopicNotFound

TICK_S = 0.25
"""How often a member looks for others that died. Failover is this and a moment."""

LOOK_S = 5.0
"""How often a member that saw everything as it is due looks once more: while it looked, it may have changed."""

KEEP_S = 5.0
"""How long a partition that its owner would not let go is left alone before asking again."""

READ_BYTES = 512 * 1024

_log = logging.getLogger("taskq.broker")


class _Held:
    """A partition that is ours."""

    __slots__ = ("cursor", "is_paused", "is_revoking", "keep_until", "lease", "mask", "partition")

    def __init__(self, lease: offsets.Lease, partition: Partition, cursor: Cursor, mask: int) -> None:
        self.mask = mask
        """Our bit among those that wait for the topic."""
        self.lease = lease
        self.partition = partition
        self.cursor = cursor
        self.is_paused = False
        self.is_revoking = False
        self.keep_until = 0.0


class EmbeddedConsumer:
    """See `taskq.broker.port.Consumer`."""

    @documented("joining a group")
    def __init__(
        self, directory: DataDirectory, bell: Bell, group: str, topics: Sequence[str], *, is_strict: bool = False
    ) -> None:
        root = directory.root
        self._pid = os.getpid()
        self.member_id = f"{self._pid}-{uuid.uuid4().hex[:12]}"
        self._directory = directory
        self._bell = bell
        self._group = group
        self._is_strict = is_strict
        self._topics = tuple(dict.fromkeys(directory.ensure(topic).name for topic in topics))
        self._waiters = names.group_waiters(root, group)
        waiters = [names.topic_waiters(root, topic) for topic in self._topics]
        self._wakeup = Wakeup(directory.files, self.member_id, self._waiters, waiters)
        self._masks = dict(zip(self._topics, self._wakeup.masks, strict=True))
        try:
            self._membership = Membership(directory.files, root, group, self.member_id, self._topics)
        except OSError:
            self._wakeup.close()
            raise
        self._held: dict[TopicPartition, _Held] = {}
        self._live: dict[str, tuple[str, ...]] = {}
        self._counts: dict[str, int] = {}
        """Partitions of every topic that any live member reads, when the target was computed."""
        self._target: set[TopicPartition] = set()
        self._settled_until = 0.0
        """Until when who owns what need not be looked at if nobody comes or goes."""
        self._next_tick = 0.0
        self._first = 0
        self._is_woken = False
        self._is_leaving = False
        self._is_closed = False
        bell.ring_group(self._waiters)

    # -- polling

    @documented("polling")
    def poll(self, timeout: float, records_max: int = 4096) -> Polled:
        deadline = time.monotonic() + timeout
        while True:
            now = time.monotonic()
            if now >= self._next_tick:
                self._next_tick = now + TICK_S
                changes = self._rebalance(now)
                if changes is not None:
                    return changes
            fetched, errors, skipped = self._fetch(records_max)
            if fetched or errors or skipped or self._is_woken or now >= deadline:
                self._is_woken = False
                return Polled(fetched=fetched, errors=errors, skipped=skipped)
            try:
                if self._has_news_after_arming():
                    continue
            except TopicNotFound:
                self._next_tick = 0.0
                continue
            rung = self._wakeup.wait(min(deadline, self._next_tick) - now)
            if GROUP_CHANGED in rung:
                self._settled_until = 0.0
                self._next_tick = 0.0

    def wakeup(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            self._wakeup.ring(NEW_RECORDS)

    def _has_news_after_arming(self) -> bool:
        """Ask to be woken at the next append; True if one came before that was heard."""
        readable = [held for held in self._held.values() if not held.is_paused and not held.is_revoking]
        for held in readable:
            held.partition.wait_for_append(held.mask)
        return any(held.partition.end() > held.cursor.offset for held in readable)

    def _fetch(
        self, records_max: int
    ) -> tuple[list[Fetched], dict[TopicPartition, BrokerError], dict[TopicPartition, int]]:
        fetched: list[Fetched] = []
        errors: dict[TopicPartition, BrokerError] = {}
        skipped: dict[TopicPartition, int] = {}
        held_partitions = list(self._held.items())
        count = len(held_partitions)
        for turn in range(count):
            tp, held = held_partitions[(self._first + turn) % count]
            cursor = held.cursor
            if held.is_paused or held.is_revoking or held.partition.end() <= cursor.offset:
                continue
            try:
                records = cursor.read(READ_BYTES, records_max)
            except (CorruptLog, OffsetOutOfRange, OSError) as error:
                if isinstance(error, OSError) and is_out_of_files(error):  # nothing is wrong with the partition
                    if not (fetched or errors or skipped):
                        raise storage_error(f"{tp} can't be read", error.filename or "its log", error) from error
                    self._first += turn  # it goes first next time, and what still fails is raised then
                    break
                if not held.partition.is_deleted:  # else the next look at the group finds it lost
                    errors[tp] = _why(tp, error)
                held.is_paused = True
                continue
            if cursor.skipped:
                skipped[tp], cursor.skipped = cursor.skipped, 0
            if records:
                fetched.append(Fetched(tp, records))
                records_max -= len(records)
                if records_max <= 0:
                    self._first += turn + 1  # who comes after this one goes first next time
                    break
        return fetched, errors, skipped

    # -- who has what

    def _rebalance(self, now: float) -> Polled | None:
        """Take what is due to us and free, and report what is due to others. None if nothing changed."""
        target: set[TopicPartition] = set() if self._is_leaving else self._find_target(now)
        if lost := self._lose():  # after the target: what has no place in it, since its topic is gone, is not revoked
            return Polled(lost=lost)
        assigned = self._take_all(sorted(target - self._held.keys()))
        revoking = set()
        for tp, held in self._held.items():
            if tp in target:
                held.is_revoking = False
            elif not held.is_revoking and now >= held.keep_until:
                held.is_revoking = True
                revoking.add(tp)
        if not assigned and not revoking:
            return None
        return Polled(assigned=assigned, revoking=frozenset(revoking))

    def _take_all(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, Committed]:
        """Take those that are free. What fails is raised once the owner has heard of those that were taken before."""
        taken: dict[TopicPartition, Committed] = {}
        for tp in tps:
            try:
                committed = self._take(tp)
            except BrokerError:
                if not taken:
                    raise
                self._next_tick = 0.0  # tried again, and raised, at the next poll
                break
            if committed is not None:
                taken[tp] = committed
        return taken

    def _lose(self) -> frozenset[TopicPartition]:
        """Let go of partitions whose topic has been deleted."""
        topics = {tp.topic for tp in self._held}
        gone = {topic for topic in topics if self._directory.find(topic) is None}
        lost = frozenset(tp for tp, held in self._held.items() if tp.topic in gone or held.partition.is_deleted)
        for tp in lost:
            held = self._held.pop(tp)
            held.cursor.close()
            held.lease.release()
        if lost:
            self._settled_until = 0.0
            self._next_tick = 0.0
            self._bell.ring_group(self._waiters)  # made anew, it may be due to one who had nothing of it to lose
        return lost

    def _find_target(self, now: float) -> set[TopicPartition]:
        """What we should have: computed anew if the group or a topic has changed, until all have what is due to them,
        and now and then."""
        live = self._membership.live()
        counts = self._counts_of(live)
        if live != self._live or counts != self._counts or now >= self._settled_until:
            self._live, self._counts, self._settled_until = live, counts, 0.0
            owners = self._owners()
            due = assign(live, counts, owners)
            self._target = {tp for tp, member in due.items() if member == self.member_id}
            self._settled_until = now + LOOK_S if due == owners else 0.0
        return self._target

    def _counts_of(self, live: Mapping[str, Sequence[str]]) -> dict[str, int]:
        """Partitions of every topic that any live member reads: the assignment is computed over all of them.

        A topic that has been deleted has none. It is not made anew here: that is for who publishes to it.
        """
        topics = {topic for member_topics in live.values() for topic in member_topics}
        found = {topic: self._directory.find(topic) for topic in sorted(topics)}
        return {name: topic.partitions for name, topic in found.items() if topic is not None}

    def _owners(self) -> dict[TopicPartition, str]:
        owners, where = {}, (self._directory.files, self._directory.root, self._group)
        for topic, count in self._counts.items():
            for number in range(count):
                tp = TopicPartition(topic, number)
                owner = self.member_id if tp in self._held else offsets.owner(*where, topic, number)
                if owner:
                    owners[tp] = owner
        return owners

    def _take(self, tp: TopicPartition) -> Committed | None:
        """Take the lease if it is free; return where to go on from."""
        directory, where = self._directory, (self._group, tp.topic, tp.partition)
        try:
            # In this order: if the topic is deleted in between, and made anew, the lease may be of the new one, but we
            # see by the partition that ours is lost.
            partition = directory.partition(tp)
            lease = offsets.Lease.take(directory.files, directory.root, *where, self.member_id)
        except (TopicNotFound, FileNotFoundError):
            return None  # deleted just now
        except OSError as error:
            raise storage_error(f"the lease of group {self._group} on {tp}", directory.root, error) from error
        if lease is None:
            return None
        if partition.is_deleted:
            lease.release()
            return None
        bounds = partition.bounds()
        committed = lease.committed or Committed(bounds.start)
        if committed.offset > bounds.end:
            _log.warning(
                "%s: group %s had committed offset %d, but the log ends at %d (a power cut?); going on from there",
                *(tp, self._group, committed.offset, bounds.end),
            )
            committed = Committed(bounds.end)
        self._held[tp] = _Held(
            lease, partition, partition.cursor(committed.offset, is_strict=self._is_strict), self._masks[tp.topic]
        )
        return committed

    # -- what the owner says

    def pause(self, tps: Sequence[TopicPartition]) -> None:
        for tp in tps:
            self._held[tp].is_paused = True

    def resume(self, tps: Sequence[TopicPartition]) -> None:
        for tp in tps:
            self._held[tp].is_paused = False

    @documented("a commit")
    def commit(self, progress: Mapping[TopicPartition, Committed]) -> frozenset[TopicPartition]:
        for tp, committed in progress.items():
            check_progress(tp, committed)
        missed = set()
        for tp, committed in progress.items():
            held = self._held.get(tp)
            if held is not None and not held.partition.is_deleted:  # the lease may be of the topic that was made anew
                held.lease.commit(committed, held.partition.end())
            else:
                missed.add(tp)
        return frozenset(missed)

    @documented("a release")
    def release(self, tps: Sequence[TopicPartition]) -> None:
        for tp in tps:
            held = self._held.pop(tp)
            held.cursor.close()
            held.lease.release()
        self._bell.ring_group(self._waiters)

    def keep(self, tps: Sequence[TopicPartition]) -> None:
        for tp in tps:
            held = self._held[tp]
            held.is_revoking = False
            held.keep_until = time.monotonic() + KEEP_S
        self._settled_until = 0.0

    @documented("leaving a group")
    def leave(self) -> None:
        if not self._is_leaving and not self._is_inherited:
            self._is_leaving = True
            self._next_tick = 0.0
            for held in self._held.values():
                held.keep_until = 0.0
            self._membership.leave()
            self._bell.ring_group(self._waiters)

    @property
    def _is_inherited(self) -> bool:
        """Whether this is a forked child's copy: what it holds is its parent's."""
        return os.getpid() != self._pid

    @documented("leaving a group")
    def close(self) -> None:
        """In a forked child it does nothing."""
        if self._is_closed or self._is_inherited:
            return
        self._is_closed = True
        for held in self._held.values():
            held.cursor.close()
            held.lease.release()
        self._held.clear()
        if not self._is_leaving:
            self._membership.leave()
        self._wakeup.close()
        self._bell.ring_group(self._waiters)


def _why(tp: TopicPartition, error: CorruptLog | OffsetOutOfRange | OSError) -> BrokerError:
    """What to say of a partition that can't be read."""
    if not isinstance(error, OSError):
        return error
    failure = StorageError(f"{tp}: reading failed: {error.strerror} ({error.filename or 'its log'})")
    failure.__cause__ = error
    return failure
