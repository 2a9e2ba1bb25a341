"""Logs of many small segments for tests, and ways to damage their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from taskq.broker.log.batch import encode_many, read_header
from taskq.broker.log.partition import Partition
from taskq.broker.port import Lost, Message, Record
from tests.broker.log.conftest import NOW_MS, plain


class Batch(NamedTuple):
    """Where a batch is on disk."""

    path: Path
    position: int
    size: int
    first: int
    next_offset: int


def fill(
    partition: Partition, times: Sequence[int], each: Callable[[int], bytes] = lambda number: b"%d" % number
) -> None:
    """Append a record for each of `times`, one by one."""
    for number, time_ms in enumerate(times):
        partition.append(plain(each(number), time_ms), 1, time_ms)


def append_many(partition: Partition, count: int, time_ms: int = NOW_MS) -> int:
    """Append one batch of `count` records; return its first offset."""
    return partition.append(encode_many([Message(b"%d" % n) for n in range(count)], time_ms), count, time_ms)


def logs(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


def batches(directory: Path) -> list[Batch]:
    """All batches of a log that is sound."""
    found: list[Batch] = []
    for path in logs(directory):
        raw, position = path.read_bytes(), 0
        while position < len(raw):
            header = read_header(raw, position)
            found.append(Batch(path, position, header.size, header.base_offset, header.next_offset))
            position += header.size
    return found


def flip(path: Path, position: int, bits: int = 1) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= bits
    path.write_bytes(raw)


def overwrite(path: Path, position: int, data: bytes) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:position] + data + raw[position + len(data) :])


def read_past_damage(partition: Partition, offset: int = 0) -> tuple[list[Record], list[Lost]]:
    """All records that can be read, and what can't."""
    lost: list[Lost] = []
    cursor = partition.cursor(offset, lost.append)
    records: list[Record] = []
    while found := cursor.read(4096):
        records += found
    cursor.close()
    return records, lost
