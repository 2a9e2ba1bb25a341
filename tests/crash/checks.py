"""After the kills: what was promised against what is there."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from attrs import evolve, frozen

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import names
from taskq.broker.log.batch import check_crc, encode_one, read_header
from taskq.broker.log.files import RealFiles
from taskq.broker.partitioner import partition_for_key
from taskq.broker.port import Committed, Record, TopicPartition
from tests.crash.family import Failed
from tests.crash.roles import FIXED, Report, check_records, digest
from tests.crash.workload import GROUPS, MADE_PARTITIONS, TOPICS, Op, metadata_of, open_broker, operations, origin

_BATCH_RECORDS_MAX = 1000
_WAIT_S = 20.0

Lines = Sequence[Sequence[str]]
_There = dict[int, tuple[TopicPartition, Record]]
"""By number, what of a writer's is there and not accounted for yet."""

Log = Mapping[TopicPartition, Sequence[Record]]


@frozen
class Known:
    """What the processes reported before they were killed."""

    seed: str
    writers: Mapping[int, Lines]
    readers: Sequence[Lines]
    committed: Mapping[tuple[str, TopicPartition], int]


@frozen
class Found:
    """The numbers of a check."""

    records: int = 0
    acknowledged: int = 0
    in_flight_there: int = 0
    segments: int = 0
    failover_ms: int = 0

    def plus(self, other: Found) -> Found:
        sums = {name: getattr(self, name) + getattr(other, name) for name in ("records", "acknowledged", "segments")}
        there = self.in_flight_there + other.in_flight_there
        return evolve(other, **sums, in_flight_there=there, failover_ms=max(self.failover_ms, other.failover_ms))


def check(report: Report, root: str, known: Known) -> None:
    """All of it, in a process of its own: `found <numbers>` if everything holds."""
    broker = open_broker(root)
    failover_ms = max(_take_over(broker, group, known) for group in GROUPS)
    segments = sum(_check_files(broker, tp) for tp in _partitions(broker))
    log = _read_all(broker)
    _check_readers(log, known)
    acknowledged, in_flight_there = _check_writers(log, known)
    broker.close()
    _check_after_reboot(root, log)
    records = sum(map(len, log.values()))
    report("found", records, acknowledged, in_flight_there, segments, failover_ms)


def _partitions(broker: EmbeddedBroker) -> list[TopicPartition]:
    admin = broker.admin()
    return [TopicPartition(topic, number) for topic in admin.topics() for number in range(admin.partitions(topic))]


def _take_over(broker: EmbeddedBroker, group: str, known: Known) -> int:
    """All are dead: a new member gets everything at once, from where the dead had committed. Milliseconds."""
    began = time.monotonic()
    consumer = broker.consumer(group, list(TOPICS))
    held: dict[TopicPartition, Committed] = {}
    while held.keys() != set(FIXED):
        held.update(consumer.poll(0.05).assigned)
        if time.monotonic() - began > _WAIT_S:
            raise Failed(f"group {group}: only {sorted(held)} are free after {_WAIT_S} s")
    took_ms = int((time.monotonic() - began) * 1000)
    for tp, committed in held.items():
        least = known.committed.get((group, tp), 0)
        if committed.offset < least or committed.metadata != metadata_of(group, tp, committed.offset):
            raise Failed(f"group {group}, {tp}: committed {least}, found {committed.offset}, or torn metadata")
    consumer.close()
    return took_ms


def _check_files(broker: EmbeddedBroker, tp: TopicPartition) -> int:
    """One more append cuts what the dead left; then the segments are sound batches without a gap, and nothing else."""
    log = broker._directory.partition(tp)
    log.append(encode_one(b"0.0.probe", None, (), 1), 1, 1)
    directory = Path(names.partition(names.topic(broker._directory.root, tp.topic), tp.partition))
    due, paths = 0, sorted(directory.glob("*.log"))
    for path in paths:
        if int(path.stem) != due:
            raise Failed(f"{path}: {due} is due")
        raw, position = path.read_bytes(), 0
        while position < len(raw):
            header = read_header(raw, position)
            check_crc(raw, position, header)
            if header.base_offset != due or header.record_count != header.last_offset_delta + 1:
                raise Failed(f"{path}, byte {position}: {header} where {due} is due")
            due, position = header.next_offset, position + header.size
    if due != log.end():
        raise Failed(f"{tp}: the files end at {due}, the head says {log.end()}")
    return len(paths)


def _read_all(broker: EmbeddedBroker) -> Log:
    reader, log = broker.reader(), {}
    for tp in _partitions(broker):
        found: list[Record] = []
        while records := reader.read(tp, len(found)):
            found += records
        if found.pop().value != b"0.0.probe":
            raise Failed(f"{tp} does not end with the probe")
        check_records(tp, found, 0)
        log[tp] = found
    return log


def _check_readers(log: Log, known: Known) -> None:
    """What was read once is there still."""
    for lines in known.readers:
        last = {tuple(line[1:3]): line[3:] for line in lines if line[0] == "read"}
        for (topic, number), (end, crc) in last.items():
            if len(log[TopicPartition(topic, int(number))]) < int(end):
                raise Failed(f"{topic}/{number}: a reader had come to {end}; that many are not there")
            if digest(log[TopicPartition(topic, int(number))][: int(end)]) != int(crc):
                raise Failed(f"{topic}/{number}: the first {end} records are not those a reader had read")


def _check_writers(log: Log, known: Known) -> tuple[int, int]:
    """Each writer's records: all that was acknowledged, at its place; in order; each once; nothing nobody wrote."""
    by_writer: dict[int, _There] = defaultdict(dict)
    for tp, records in log.items():
        last: dict[int, int] = {}
        for record in records:
            assert record.value is not None
            writer, number = origin(record.value)
            if last.get(writer, -1) >= number or number in by_writer[writer]:
                raise Failed(f"{tp}, offset {record.offset}: number {number} of writer {writer} out of order, or twice")
            last[writer] = number
            by_writer[writer][number] = tp, record
    if strangers := by_writer.keys() - known.writers.keys():
        raise Failed(f"records of writers that never were: {strangers}")
    acknowledged = in_flight_there = 0
    for writer, lines in known.writers.items():
        there = by_writer[writer]
        *done, in_flight = islice(operations(known.seed, writer), len(lines) + 1)
        for op, (_, _, partition, offset) in zip(done, lines, strict=True):
            acknowledged += len(op.messages)
            if (count := _check_op(op, there, int(partition), int(offset))) != len(op.messages):
                raise Failed(f"LOST: writer {writer}, {op.topic}: {count} of {len(op.messages)} acknowledged are there")
        in_flight_there += _check_in_flight(in_flight, there)
        if there:
            raise Failed(f"writer {writer}: {sorted(there)[:5]} are there and were never sent")
    return acknowledged, in_flight_there


def _check_op(op: Op, there: _There, partition: int, offset: int) -> int:
    """How many of an op's messages are there, taken out of `there`. Byte for byte."""
    count = 0
    for number, message in enumerate(op.messages, op.first):
        found = there.pop(number, None)
        if found is None:
            continue
        count += 1
        tp, record = found
        if tp.topic != op.topic or (record.value, record.key, record.headers) != message:
            raise Failed(f"{tp}, offset {record.offset}: altered")
        if offset >= 0 and (tp.partition, record.offset) != (partition, offset):
            raise Failed(f"{tp}, offset {record.offset}: acknowledged as {partition}, {offset}")
    return count


def _check_in_flight(op: Op, there: _There) -> int:
    """What its writer was killed in: of each batch, all or nothing."""
    batches: dict[int, list[int]] = defaultdict(list)
    assert len(op.messages) < _BATCH_RECORDS_MAX
    count = TOPICS.get(op.topic, MADE_PARTITIONS)
    for number, message in enumerate(op.messages, op.first):
        batches[partition_for_key(message.key, count) if message.key is not None else 0].append(number)
    for partition, numbers in batches.items():
        if len({number in there for number in numbers}) > 1:
            raise Failed(f"{op.topic}/{partition}: half a batch is there, of {numbers}")
    return _check_op(op, there, -1, -1)


class _Rebooted(RealFiles):
    def boot_id(self) -> tuple[int, int]:
        return 1, 2


def _check_after_reboot(root: str, log: Log) -> None:
    """The heads are not trusted after a reboot: recovery, from the checkpoints that were left, finds the same."""
    broker = open_broker(root, files=_Rebooted())
    reader = broker.reader()
    for tp, records in log.items():
        found: list[Record] = []
        while more := reader.read(tp, len(found)):
            found += more
        if found[:-1] != records:
            raise Failed(f"{tp}: after a reboot there are {len(found)} records, {len(records) + 1} before")
    broker.close()
