"""A consumer with what it reported so far, as every owner of one must keep it, and checks of what always holds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

from taskq.broker.port import Committed, Consumer, Polled, Record, TopicPartition

WAIT_S = 20.0
"""How long a test waits for what should come at once, before it fails."""


class Member:
    def __init__(self, consumer: Consumer) -> None:
        self.consumer = consumer
        self.held: dict[TopicPartition, Committed] = {}
        """What was committed when it was assigned."""
        self.positions: dict[TopicPartition, int] = {}
        self.revoking: set[TopicPartition] = set()
        self.may_lose = False
        """Whether a topic may be lost, and come again."""
        self.records: dict[TopicPartition, list[Record]] = defaultdict(list)

    @property
    def values(self) -> list[bytes | None]:
        return [record.value for records in self.records.values() for record in records]

    def poll(self, timeout: float = WAIT_S, records_max: int = 4096) -> Polled:
        polled = self.consumer.poll(timeout, records_max)
        assert self.may_lose or not polled.lost
        for tp in polled.lost:
            del self.held[tp], self.positions[tp]
            self.records.pop(tp, None)
        assert not polled.errors
        for tp, committed in polled.assigned.items():
            assert tp not in self.held, "assigned what it has"
            self.held[tp] = committed
            self.positions[tp] = committed.offset
        assert polled.revoking <= self.held.keys(), "revoked what it has not"
        self.revoking |= polled.revoking
        for tp, records in polled.fetched:
            assert tp in self.held, "fetched from what it has not"
            assert records, "fetched nothing"
            for record in records:
                assert record.offset == self.positions[tp], "each record once, in order, without gaps"
                self.positions[tp] += 1
            self.records[tp] += records
        return polled

    def poll_until(self, condition: Callable[[], bool], records_max: int = 4096) -> None:
        settle(self, until=condition, records_max=records_max)

    def start(self, count: int = 1) -> None:
        """Poll until it has so many partitions, and nothing more is there at once."""
        self.poll_until(lambda: len(self.held) >= count)
        self.drain()

    def drain(self) -> None:
        """Poll until nothing is there at once."""
        while self.poll(0.0) != Polled():
            pass

    def commit(self) -> None:
        """That all it has got is finished."""
        self.consumer.commit({tp: Committed(position) for tp, position in self.positions.items()})

    def let_go(self) -> None:
        """Of all that is revoking, committed."""
        self.consumer.commit({tp: Committed(self.positions[tp]) for tp in self.revoking})
        self.consumer.release(sorted(self.revoking))
        for tp in self.revoking:
            del self.held[tp], self.positions[tp]
        self.revoking.clear()


def settle(*members: Member, until: Callable[[], bool], lets_go: bool = False, records_max: int = 4096) -> None:
    """Poll all of them in turn until the condition holds. With `lets_go` they release what is asked for at once."""
    deadline = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < deadline, f"it never came: {[member.held for member in members]}"
        for member in members:
            member.poll(0.02, records_max)
            if lets_go and member.revoking:
                member.let_go()
