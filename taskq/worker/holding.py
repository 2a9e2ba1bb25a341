"""Holding all partitions of a topic for as long as something is done to them as a whole, which nobody else does then.

Who comes while another is at work waits until that has ended. Of several who come at once each would get a share, and
wait for the others' for ever: so all but the one whose id is the lowest leave again, until that one has everything.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from attrs import define

from taskq.broker.port import Admin, Broker, Committed, Consumer, TopicPartition
from taskq.errors import TaskqError, TopicNotFound

_LOOK_S = 0.02
"""How often to look whether others are ready. There is nothing to wait on where one is no member."""

_POLL_S = 0.25


@define
class Held:
    """All partitions of a topic."""

    committed: Mapping[TopicPartition, Committed]
    """As it was when they were taken."""
    _consumer: Consumer

    def commit(self, tp: TopicPartition, committed: Committed) -> None:
        """Store progress. What others ask for meanwhile is kept; TopicNotFound if it is not held any more."""
        missed = self._consumer.commit({tp: committed})
        polled = self._consumer.poll(0)
        if polled.assigned:  # the topic has more partitions now
            self._consumer.pause(list(polled.assigned))
        if polled.revoking:
            self._consumer.keep(list(polled.revoking))
        if polled.lost or missed:
            why = "it has been deleted, or this took so long that the group went on without it"
            raise TopicNotFound(f"topic {tp.topic!r} was taken away while it was worked on: {why}")


@contextmanager
def holding(broker: Broker, group: str, topic: str, wait_s: float) -> Generator[Held]:
    """Hold all of `topic` as a member of `group`. After `wait_s` seconds, TaskqError that says who has it."""
    admin = broker.admin()
    deadline = time.monotonic() + wait_s
    while True:
        consumer = broker.consumer(group, [topic])
        try:
            committed = _take_all(consumer, admin, group, topic, deadline)
            if committed is not None:
                yield Held(committed, consumer)
                return
            first = min(_members(admin, group, topic), default=consumer.member_id)
        finally:
            consumer.close()
        while time.monotonic() < deadline and not _is_served(admin, group, topic, first):
            time.sleep(_LOOK_S)


def _take_all(
    consumer: Consumer, admin: Admin, group: str, topic: str, deadline: float
) -> dict[TopicPartition, Committed] | None:
    """Wait until all partitions are assigned. None: others want them too, and one of those comes first."""
    wanted = _partitions(admin, topic)
    taken: dict[TopicPartition, Committed] = {}
    while True:
        left_s = deadline - time.monotonic()
        polled = consumer.poll(max(0.0, min(_POLL_S, left_s)))
        consumer.pause(list(polled.assigned))
        taken.update(polled.assigned)
        if polled.lost:
            raise TopicNotFound(f"topic {topic!r} has been deleted")
        if wanted <= taken.keys():
            return taken
        if left_s <= 0:
            raise TaskqError(_who_has(admin, group, wanted - taken.keys()))
        if taken and min(_members(admin, group, topic), default=consumer.member_id) < consumer.member_id:
            return None


def _partitions(admin: Admin, topic: str) -> set[TopicPartition]:
    return {TopicPartition(topic, number) for number in range(admin.partitions(topic))}


def _members(admin: Admin, group: str, topic: str) -> list[str]:
    return [member for member, topics in admin.describe_group(group).members.items() if topic in topics]


def _is_served(admin: Admin, group: str, topic: str, member: str) -> bool:
    """Whether `member` has all of it, or is gone."""
    found = admin.describe_group(group)
    owned = {tp for tp, owner in found.owners.items() if owner == member}
    return member not in found.members or _partitions(admin, topic) <= owned


def _who_has(admin: Admin, group: str, wanted: set[TopicPartition]) -> str:
    owners = admin.describe_group(group).owners
    holders = sorted({owners[tp] for tp in wanted if tp in owners})
    topic = next(iter(wanted)).topic
    who = f"by {' and '.join(holders)} (process id first)" if holders else "by others, which took turns"
    return f"{topic} is being worked on {who}: try again when that has ended"
