"""What the processes do that are to be killed. Each reports what it has been promised as soon as it has been."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from random import Random

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.port import Committed, Consumer, Record, TopicPartition
from tests.crash.workload import DURABILITIES, TOPICS, doom, is_sealed, metadata_of, open_broker, operations

FIXED = [TopicPartition(topic, number) for topic, count in TOPICS.items() for number in range(count)]


class Report:
    """A pipe to the parent. A line is written whole or not at all (PIPE_BUF), so a kill tears none."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __call__(self, *words: object) -> None:
        os.write(self._fd, (" ".join(map(str, words)) + "\n").encode())


def now() -> int:
    """Nanoseconds; the same clock in all processes."""
    return time.monotonic_ns()


def write(report: Report, root: str, seed: str, writer: int) -> None:
    """Publish, and say so after each call: `ack <op> <partition> <offset>`; -1 where the port doesn't tell."""
    durability = Random(f"{seed}/{writer}").choice(DURABILITIES)
    producer = open_broker(root, durability, files=doom(seed, writer)).producer()
    for index, op in enumerate(operations(seed, writer)):
        if op.in_bulk:
            producer.send_many(op.topic, op.messages)
            report("ack", index, -1, -1)
        else:
            report("ack", index, *producer.send(op.topic, *op.messages[0]))


def read(report: Report, root: str, seed: str, number: int) -> None:
    """Follow the topics from their start: `read <topic> <partition> <end> <crc>` says what was seen up to an end."""
    rng = Random(f"{seed}/{number}")
    broker = open_broker(root)
    admin, reader = broker.admin(), broker.reader()
    seen: dict[TopicPartition, tuple[int, int]] = {}
    while True:
        for tp in FIXED if set(TOPICS) <= set(admin.topics()) else ():
            offset, crc = seen.get(tp, (0, 0))
            records = reader.read(tp, offset, rng.choice((1, 1000, 100_000)))
            check_records(tp, records, offset)
            if records:
                crc = digest(records, crc)
                seen[tp] = records[-1].offset + 1, crc
                report("read", *tp, *seen[tp])
        report("alive")


def check_records(tp: TopicPartition, records: Sequence[Record], offset: int) -> None:
    """Each is the one that is due, and whole."""
    for due, record in enumerate(records, offset):
        assert record.offset == due, f"{tp}: offset {record.offset} where {due} is due"
        assert is_sealed(record.value), f"{tp}: offset {due} is not what was written"


def digest(records: Sequence[Record], crc: int = 0) -> int:
    """A checksum of all that has been read so far."""
    for _, timestamp_ms, key, value, headers in records:
        crc = zlib.crc32(b"%d" % timestamp_ms + (key or b"") + (value or b"") + b"".join(v for _, v in headers), crc)
    return crc


class _Member:
    """A member of a group: checks what it gets, and reports what it is given, commits and gives up."""

    def __init__(self, report: Report, broker: EmbeddedBroker, group: str, rng: Random) -> None:
        self._report = report
        self._group = group
        self._rng = rng
        self._consumer: Consumer = broker.consumer(group, list(TOPICS))
        self._positions: dict[TopicPartition, int] = {}

    def turn(self) -> None:
        begun = now()
        polled = self._consumer.poll(0.02, self._rng.choice((1, 50, 4096)))
        assert not polled.errors, polled.errors
        assert not polled.lost
        for tp, committed in polled.assigned.items():
            assert committed.metadata == metadata_of(self._group, tp, committed.offset), f"{tp}: metadata is torn"
            self._positions[tp] = committed.offset
            self._report("assigned", now(), begun, *tp, committed.offset)
        for tp, records in polled.fetched:
            check_records(tp, records, self._positions[tp])
            self._positions[tp] = records[-1].offset + 1
        if self._rng.random() < 0.5:
            self._commit()
        if polled.revoking:
            if self._rng.random() < 0.2:
                self._consumer.keep(sorted(polled.revoking))
            else:
                self._commit()
                self._give_up(polled.revoking)
                self._consumer.release(sorted(polled.revoking))
        self._report("alive")

    def _commit(self) -> None:
        progress = {tp: Committed(at, metadata_of(self._group, tp, at)) for tp, at in self._positions.items()}
        self._consumer.commit(progress)
        for tp, at in self._positions.items():
            self._report("commit", now(), 0, *tp, at)

    def _give_up(self, tps: frozenset[TopicPartition]) -> None:
        for tp in tps:
            self._report("release", now(), 0, *tp, self._positions.pop(tp))

    def close(self) -> None:
        self._give_up(frozenset(self._positions))
        self._consumer.close()


def consume(report: Report, root: str, seed: str, number: int, group: str) -> None:
    """Be a member of a group, again and again: `assigned`, `commit`, `release`, each `<when> <begun> <tp> <offset>`."""
    rng = Random(f"{seed}/{number}")
    broker = open_broker(root)
    while True:
        member = _Member(report, broker, group, rng)
        while rng.random() < 0.98:
            member.turn()
        member.close()
