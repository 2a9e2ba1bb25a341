"""Repairing a partition whose fsync failed: what can be read is written again, what can not is told, nothing moves."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from taskq.broker.log.files import RealFiles
from taskq.broker.log.inspection import inspect
from taskq.broker.log.partition import Partition
from taskq.errors import StorageError
from tests.broker.log.conftest import OpenPartition
from tests.broker.log.segments import batches, overwrite
from tests.broker.log.test_durability import SyncFiles, append
from tests.broker.log.test_partition import read_all, values


def append_and_fail(partition: Partition, files: SyncFiles, count: int, synced: int, size: int = 0) -> list[int]:
    """Append `count` numbers, sync after `synced` of them, and fail to at the end. Returns the sizes of the log."""
    sizes = [0]
    for number in range(count):
        append(partition, b"%d" % number + bytes(size))
        sizes.append(partition.size_bytes())
        if number + 1 == synced:
            partition.sync()
    files.error = errno.EIO
    with pytest.raises(StorageError):
        partition.sync()
    files.error = None
    return sizes


def test_reopening_writes_again_what_the_system_may_have_dropped(open_partition: OpenPartition, tmp_path: Path) -> None:
    files = SyncFiles()
    partition = open_partition(files)
    append(partition, b"synced")
    partition.sync()
    synced = partition.size_bytes()
    for number in range(5):
        append(partition, b"%d" % number)
    files.error = errno.EIO
    with pytest.raises(StorageError):
        partition.sync()
    with pytest.raises(StorageError, match="failed"):
        open_partition(files)  # which tries, and fails again
    files.error = None
    files.writes.clear()
    reopened = open_partition(files)
    assert (synced, partition.size_bytes() - synced) in files.writes
    assert append(reopened, b"after") == 6
    assert values(read_all(reopened)) == [b"synced", b"0", b"1", b"2", b"3", b"4", b"after"]
    assert "an fsync failed" in (tmp_path / "recovery.json").read_text()
    with pytest.raises(StorageError):
        append(partition, b"who had the failure must reopen")


GONE = [(3,), (4,), (7,), (3, 6), (3, 4, 5), (6, 7), (3, 4, 5, 6, 7)]


@pytest.mark.parametrize("size", [0, 700_000])
@pytest.mark.parametrize("gone", GONE)
def test_what_is_gone_after_a_failed_fsync_costs_nothing_else(
    open_partition: OpenPartition, tmp_path: Path, gone: tuple[int, ...], size: int
) -> None:
    files = SyncFiles()
    partition = open_partition(files)
    ends = append_and_fail(partition, files, count=8, synced=3, size=size)
    (log,) = tmp_path.glob("*.log")
    sound = log.read_bytes()
    for number in gone:  # pages that were dropped, and read again from the disk
        overwrite(log, ends[number], bytes(ends[number + 1] - ends[number]))
    reopened = open_partition(files)
    assert reopened.end() == 8, "no offset is given out twice"
    assert append(reopened, b"new") == 8
    assert [record.offset for record in read_all(reopened)] == [n for n in range(9) if n not in gone]
    repaired = log.read_bytes()
    assert all(repaired[ends[n] : ends[n + 1]] == sound[ends[n] : ends[n + 1]] for n in range(8) if n not in gone)
    (report,) = json.loads((tmp_path / "recovery.json").read_text())
    assert report["missing"] is None, "of what had been synced"
    assert {n for one in report["lost"] for n in range(one["offset"], one["next_offset"])} == set(gone)
    assert any("not been synced" in one.what for one in inspect(RealFiles(), str(tmp_path)).findings)


def test_a_log_that_has_become_shorter_is_repaired(open_partition: OpenPartition, tmp_path: Path) -> None:
    files = SyncFiles()
    ends = append_and_fail(open_partition(files), files, count=8, synced=3)
    (log,) = tmp_path.glob("*.log")
    log.write_bytes(log.read_bytes()[: ends[5] + 10])
    reopened = open_partition(files)
    append(reopened, b"new")
    assert [record.offset for record in read_all(reopened)] == [0, 1, 2, 3, 4, 8]


def test_sound_batches_among_what_is_gone_are_set_aside(open_partition: OpenPartition, tmp_path: Path) -> None:
    """It can't be known that they are no part of a value."""
    files = SyncFiles()
    ends = append_and_fail(open_partition(files), files, count=8, synced=3)
    (log,) = tmp_path.glob("*.log")
    for number in (4, 6):
        overwrite(log, ends[number] + 9, b"\1")  # in the length
    raw = log.read_bytes()
    reopened = open_partition(files)
    assert [record.offset for record in read_all(reopened)] == [0, 1, 2, 3, 7]
    (aside,) = tmp_path.glob("*.aside")
    assert aside.read_bytes() == raw[ends[4] : ends[7]]


def test_offsets_that_are_gone_without_a_byte_cost_all_that_is_behind_them(
    open_partition: OpenPartition, tmp_path: Path
) -> None:
    files = SyncFiles()
    append_and_fail(open_partition(files), files, count=8, synced=3)
    (log,) = tmp_path.glob("*.log")
    for batch in batches(tmp_path)[4:6]:
        overwrite(log, batch.position, (batch.first + 1).to_bytes(8, "big"))
    reopened = open_partition(files)
    assert append(reopened, b"new") == 8
    assert [record.offset for record in read_all(reopened)] == [0, 1, 2, 3, 8]
    assert len(list(tmp_path.glob("*.aside"))) == 1


@pytest.mark.parametrize("read", [3, 4, 5, 6])
def test_who_had_read_what_is_gone_after_a_failed_fsync_reads_on_after_it(
    open_partition: OpenPartition, tmp_path: Path, read: int
) -> None:
    files = SyncFiles()
    partition = open_partition(files)
    ends = append_and_fail(partition, files, count=6, synced=3)
    cursor = partition.cursor(0)
    assert values([record for _ in range(read) for record in cursor.read(1, 1)]) == [b"%d" % n for n in range(read)]
    (log,) = tmp_path.glob("*.log")
    log.write_bytes(log.read_bytes()[: ends[3]] + bytes(ends[6] - ends[3]))
    reopened = open_partition(files)
    append(reopened, b"new")
    assert values(cursor.read(1 << 20)) == [b"new"]
    cursor.close()


@pytest.mark.parametrize("harmed", ["a record", "a length"])
def test_a_repair_touches_nothing_that_had_been_synced(
    open_partition: OpenPartition, tmp_path: Path, harmed: str
) -> None:
    files = SyncFiles()
    ends = append_and_fail(open_partition(files), files, count=8, synced=6)
    (log,) = tmp_path.glob("*.log")
    sound = log.read_bytes()
    raw = bytearray(sound)
    raw[ends[2] + (66 if harmed == "a record" else 8)] ^= 1
    log.write_bytes(raw)
    if harmed == "a length":
        with pytest.raises(StorageError, match="damaged before offset 6"):
            open_partition(files)
        assert log.read_bytes() == raw
        log.write_bytes(sound)
        open_partition(files)
        return
    reopened = open_partition(files)
    assert log.read_bytes() == raw
    assert append(reopened, b"new") == 8
    assert values(read_all(reopened, 3)) == [b"3", b"4", b"5", b"6", b"7", b"new"]
    log.write_bytes(sound + log.read_bytes()[len(sound) :])
