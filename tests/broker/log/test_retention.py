"""Retention: which segments go, that they go in an order which no crash can harm, and that readers don't mind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from taskq.broker.log import checkpoint, names
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.log.recovery import segment_bases
from taskq.broker.log.retention import Segment, clean, removable, timestamp_max
from taskq.broker.port import PartitionBounds, Record
from taskq.topics import TopicSettings
from tests.broker.log.conftest import NOW_MS, OpenPartition
from tests.broker.log.segments import fill

DELETE = TopicSettings(unfinished="delete", retention_ms=1000)
SEGMENTS = [Segment(base, base + 10, 100, base) for base in (0, 10, 20, 30)]
"""Of ten records each, the largest timestamp that of the first."""


@pytest.mark.parametrize(
    ("settings", "now_ms", "finished", "going"),
    [
        ({}, 0, 100, 0),
        ({"retention_ms": 1000}, 1000, 100, 0),
        ({"retention_ms": 1000}, 1011, 100, 2),
        ({"retention_ms": 1000}, 9999, 100, 4),
        ({"retention_ms": 1000}, 9999, 20, 2),
        ({"retention_ms": 1000}, 9999, 19, 1),
        ({"retention_ms": 1000}, 9999, 0, 0),
        ({"retention_ms": 1000, "unfinished": "delete"}, 9999, 0, 4),
        ({"retention_ms": -1, "unfinished": "delete"}, 1 << 60, 0, 0),
        ({"retention_ms": -1, "retention_bytes": 350}, 0, 100, 1),
        ({"retention_ms": -1, "retention_bytes": 351}, 0, 100, 0),
        ({"retention_ms": -1, "retention_bytes": 0}, 0, 100, 4),
        ({"retention_ms": -1, "retention_bytes": 0}, 0, 25, 2),
        ({"retention_ms": 1000, "retention_bytes": 250}, 1005, 100, 2),
    ],
)
def test_what_goes(settings: dict[str, int | str], now_ms: int, finished: int, going: int) -> None:
    chosen = evolve(TopicSettings(), **settings)  # type: ignore[arg-type]
    assert removable(SEGMENTS, 50, chosen, now_ms, finished) == SEGMENTS[:going]


def test_a_segment_that_must_stay_keeps_all_after_it() -> None:
    young_first = [evolve(SEGMENTS[0], timestamp_max_ms=5000), *SEGMENTS[1:]]
    assert removable(young_first, 0, DELETE, 2000, 0) == []


def filled(open_partition: OpenPartition, files: RealFiles | None = None, count: int = 60) -> Partition:
    """A partition of many segments, whose records are a second apart."""
    partition = open_partition(files, segment_bytes_max=700)
    fill(partition, [NOW_MS + 1000 * number for number in range(count)])
    return partition


def read_all(partition: Partition) -> list[Record]:
    cursor, found = partition.cursor(0), []
    while records := cursor.read(1 << 20):
        found += records
    cursor.close()
    return found


def check_whole(partition: Partition, count: int) -> int:
    """That it holds all records from its start on; return that."""
    start = partition.bounds().start
    assert [record.offset for record in read_all(partition)] == list(range(start, count))
    assert all(record.value == b"%d" % record.offset for record in read_all(partition))
    return start


def test_old_segments_are_removed_and_the_rest_stays(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = filled(open_partition)
    bases = segment_bases(RealFiles(), str(tmp_path))
    gone = clean(RealFiles(), partition, DELETE, NOW_MS + 31_500, 0)
    expected = [base for base, end in pairwise(bases) if 1000 * (end - 1) < 30_500]
    assert [segment.base for segment in gone] == expected
    start = check_whole(partition, 60)
    assert start == gone[-1].end == segment_bases(RealFiles(), str(tmp_path))[0]
    assert {path.name[:20] for path in tmp_path.glob("0*")} == {f"{base:020}" for base in bases if base >= start}
    assert clean(RealFiles(), partition, DELETE, NOW_MS + 31_500, 0) == []
    other = open_partition()
    assert other.bounds() == PartitionBounds(start, 60)
    fill(partition, [NOW_MS])
    assert partition.end() == 61


def test_what_is_old_in_the_active_segment_goes_too(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = filled(open_partition)
    clean(RealFiles(), partition, DELETE, NOW_MS + 10**7, 0)
    assert partition.bounds() == PartitionBounds(60, 60)
    assert segment_bases(RealFiles(), str(tmp_path)) == [60]
    assert partition.size_bytes() == 0
    clean(RealFiles(), partition, DELETE, NOW_MS + 10**9, 0)
    assert segment_bases(RealFiles(), str(tmp_path)) == [60], "an empty segment is not closed"


def test_a_segment_is_closed_when_its_first_record_is_old(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    fill(partition, [NOW_MS, NOW_MS + 5000])
    settings = TopicSettings(segment_ms=6000, retention_ms=-1)
    assert clean(RealFiles(), partition, settings, NOW_MS + 6000, 0) == []
    assert segment_bases(RealFiles(), str(tmp_path)) == [0]
    assert clean(RealFiles(), partition, settings, NOW_MS + 6001, 0) == []
    assert segment_bases(RealFiles(), str(tmp_path)) == [0, 2]


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 24 * 12)


def lie(path: Path) -> None:
    path.write_bytes((1).to_bytes(8, "big") + (0).to_bytes(4, "big"))


@pytest.mark.parametrize("damage", [None, Path.unlink, truncate, lie, lambda path: path.write_bytes(b"x" * 13)])
def test_a_time_index_is_not_believed(
    open_partition: OpenPartition, tmp_path: Path, damage: Callable[[Path], object] | None
) -> None:
    partition = open_partition(segment_bytes_max=30_000)
    times = [NOW_MS + (number * 7919) % 5000 for number in range(1000)]
    fill(partition, times, lambda number: b"x" * 60)
    bases = segment_bases(RealFiles(), str(tmp_path))
    assert len(bases) > 3
    for base, end in pairwise(bases):
        if damage is not None:
            damage(Path(names.timeindex(str(tmp_path), base)))
        assert timestamp_max(RealFiles(), str(tmp_path), base) == max(times[base:end])


class Crash(BaseException):
    pass


class Dying(RealFiles):
    """Ends the process, as it were, before the n-th call that changes anything."""

    left = 1 << 30

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    def unlink(self, path: str, /) -> None:  # type: ignore[override]
        self._count()
        os.unlink(path)

    def rename(self, old: str, new: str, /) -> None:  # type: ignore[override]
        self._count()
        os.rename(old, new)

    def pwrite(self, fd: int, data: bytes, position: int, /) -> int:  # type: ignore[override]
        self._count()
        return os.pwrite(fd, data, position)

    def sync_directory(self, path: str) -> None:
        self._count()
        super().sync_directory(path)


@pytest.mark.parametrize("reboots", [False, True])
def test_whatever_ends_it_the_log_begins_where_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reboots: bool
) -> None:
    starts = []
    for calls in range(100):
        where = tmp_path / str(calls)
        where.mkdir()

        def opened(files: RealFiles, where: Path = where) -> Partition:
            return Partition(files, str(where), "feed/0", lambda bits: None, lambda end: (), 700)

        files = Dying()
        partition = filled(lambda files, segment_bytes_max: opened(files), files)
        partition.sync()
        files.left = calls
        try:
            clean(files, partition, DELETE, NOW_MS + 31_500, 0)
        except Crash:
            ended = True
        else:
            ended = False
        files.left = 1 << 30
        with monkeypatch.context() as patched:
            if reboots:
                patched.setattr(RealFiles, "boot_id", lambda self: (7, 7))
            again = opened(RealFiles())
            starts.append(check_whole(again, 60))
            done = clean(RealFiles(), again, DELETE, NOW_MS + 31_500, 0)
            start = check_whole(again, 60)
            assert segment_bases(RealFiles(), str(where))[0] == start, done
            again.close()
        partition.close()  # which would have told where it begins
        if not ended:
            break
    assert calls > 10
    assert starts == sorted(starts)
    assert set(starts) == ({0, 30} if reboots else {30}), "where it did, or where it is to, and nowhere else"


READER = """
import sys
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
partition = Partition(RealFiles(), sys.argv[1], "feed/0", lambda bits: None, lambda end: ())
cursor = partition.cursor(0)
for line in sys.stdin:
    for record in cursor.read(1, 1):
        print(record.offset, record.value.decode(), cursor.skipped, flush=True)
"""


def test_a_reader_in_another_process_only_gets_a_later_start(open_partition: OpenPartition, tmp_path: Path) -> None:
    """It reads a batch at a time while segments vanish before, under and after it."""
    partition = filled(open_partition, count=400)
    command = [sys.executable, "-c", READER, str(tmp_path)]
    offsets: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        skipped, start, turn = 0, 0, 0
        while not offsets or offsets[-1] < 399:
            turn += 1
            if turn % 10 == 0:
                clean(RealFiles(), partition, DELETE, NOW_MS + 1000 * min(turn * 3, 300), 0)
                start = partition.bounds().start
            print(file=reader.stdin, flush=True)
            offset, value, skipped = map(int, reader.stdout.readline().split())
            assert offset == value
            assert not offsets or offset > offsets[-1]
            offsets.append(offset)
        reader.stdin.close()
    assert reader.returncode == 0
    assert start > 100
    assert skipped == 400 - len(offsets) > 0, "what it did not get was counted"


def test_a_new_start_does_not_hide_what_a_dead_writer_left(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Who publishes a head anew, for whatever reason, leaves it to the next writer to cut the tail."""
    partition = open_partition()
    fill(partition, [NOW_MS])
    partition.head.begin()
    path = Path(names.log(str(tmp_path), 0))
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"torn" * 1000)
    partition.head.republish(partition.head.state())
    fill(partition, [NOW_MS])
    assert path.stat().st_size == 2 * size


def test_a_checkpoint_that_was_begun_before_does_not_bring_the_old_start_back(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even after a power cut that took some of the removals back."""
    partition, other = filled(open_partition), open_partition()
    oldest = names.log(str(tmp_path), 0)
    kept, write, begun = Path(oldest).read_bytes(), checkpoint.write, list[bool]()

    def write_late(*arguments: Any) -> None:
        if not begun:
            begun.append(True)
            clean(RealFiles(), other, DELETE, NOW_MS + 31_500, 0)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write", write_late)
    partition.sync()
    partition._write_checkpoint()
    assert begun
    start = other.bounds().start
    assert start > 0
    Path(oldest).write_bytes(kept)
    monkeypatch.setattr(RealFiles, "boot_id", lambda self: (4, 4))
    assert check_whole(open_partition(), 60) == start
