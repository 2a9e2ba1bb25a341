from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from taskq.broker.log.files import RealFiles
from taskq.broker.port import PartitionBounds, Record, WouldBlock
from taskq.errors import CorruptLog, StorageError, StorageFull
from tests.broker.log.conftest import NOW_MS, OpenPartition, plain


def read_all(partition: object, offset: int = 0, bytes_max: int = 1 << 20) -> list[Record]:
    cursor = partition.cursor(offset)  # type: ignore[attr-defined]
    records: list[Record] = []
    while found := cursor.read(bytes_max):
        records += found
    cursor.close()
    return records


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def reboot(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on heads of before are those of another boot."""
    monkeypatch.setattr(RealFiles, "boot_id", lambda self: (1, 2))


class FailingFiles(RealFiles):
    """The real file system, until told what is to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.write_error: int | None = None
        self.write_at_most: int | None = None
        self.sync_error: int | None = None
        self.syncs = 0

    def pwrite(self, fd: int, data: bytes, position: int, /) -> int:  # type: ignore[override]
        if self.write_error is not None:
            raise OSError(self.write_error, os.strerror(self.write_error))
        return os.pwrite(fd, data[: self.write_at_most], position)

    def sync(self, fd: int, /) -> None:  # type: ignore[override]
        self.syncs += 1
        if self.sync_error is not None:
            raise OSError(self.sync_error, os.strerror(self.sync_error))


def test_offsets_count_records_not_batches(open_partition: OpenPartition) -> None:
    partition = open_partition()
    assert [partition.append(plain(b"%d" % n), 1, NOW_MS) for n in range(5)] == [0, 1, 2, 3, 4]
    assert partition.bounds() == PartitionBounds(0, 5)
    assert values(read_all(partition)) == [b"0", b"1", b"2", b"3", b"4"]


def test_another_opener_reads_and_appends_at_once(open_partition: OpenPartition) -> None:
    first, second = open_partition(), open_partition()
    for number in range(100):
        (first if number % 3 else second).append(plain(b"%d" % number), 1, NOW_MS)
    assert values(read_all(first)) == values(read_all(second)) == [b"%d" % n for n in range(100)]


@pytest.mark.parametrize("offset", [0, 1, 499, 998, 999])
def test_reading_starts_at_any_offset(open_partition: OpenPartition, offset: int) -> None:
    partition = open_partition()
    for number in range(1000):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    assert [record.offset for record in read_all(partition, offset)] == list(range(offset, 1000))


def test_a_batch_larger_than_what_is_read_at_once_is_read_whole(open_partition: OpenPartition) -> None:
    partition = open_partition()
    partition.append(plain(b"x" * 100_000), 1, NOW_MS)
    partition.append(plain(b"after"), 1, NOW_MS)
    assert [len(value or b"") for value in values(read_all(partition, bytes_max=4096))] == [100_000, 5]


def test_segments_roll_and_are_read_across(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=2000)
    for number in range(200):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    assert len(list(tmp_path.glob("*.log"))) > 5
    assert [record.offset for record in read_all(partition)] == list(range(200))
    assert [record.offset for record in read_all(partition, 150)] == list(range(150, 200))


def test_another_opener_follows_a_roll(open_partition: OpenPartition) -> None:
    first, second = open_partition(segment_bytes_max=500), open_partition(segment_bytes_max=500)
    cursor = second.cursor(0)
    seen: list[bytes | None] = []
    for number in range(40):
        (first if number % 2 else second).append(plain(b"%d" % number), 1, NOW_MS)
        seen += values(cursor.read(1 << 20))
    assert seen == [b"%d" % n for n in range(40)]


@pytest.mark.parametrize("damage", ["missing", "garbage", "empty", "of another log"])
def test_an_index_is_never_trusted(open_partition: OpenPartition, tmp_path: Path, damage: str) -> None:
    partition = open_partition()
    for number in range(2000):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    (index,) = tmp_path.glob("*.index")
    assert index.stat().st_size > 100
    if damage == "missing":
        index.unlink()
    else:
        left = {"garbage": b"\0\0\0\5" * 400, "empty": b"", "of another log": b"\0\0\0\1\0\0\1\1" * 50}
        index.write_bytes(left[damage])
    assert [record.offset for record in read_all(partition, 1500)] == list(range(1500, 2000))


def test_a_torn_tail_is_not_corruption(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarantee 9: wherever a power cut ends the file, what was whole before it is all there."""
    reopened = partition = open_partition()
    whole, ends = 0, []
    for number in range(20):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
        ends.append(partition.size_bytes())
    (log,) = tmp_path.glob("*.log")
    raw = log.read_bytes()
    for boot, cut in enumerate(range(len(raw), ends[15], -7)):
        log.write_bytes(raw[:cut])
        monkeypatch.setattr(RealFiles, "boot_id", lambda self, boot=boot: (3, boot))
        reopened = open_partition()
        whole = sum(end <= cut for end in ends)
        assert values(read_all(reopened)) == [b"%d" % n for n in range(whole)]
        assert log.stat().st_size == (ends[whole - 1] if whole else 0)
    assert reopened.append(plain(b"next"), 1, NOW_MS) == whole


def test_after_a_reboot_garbage_and_what_follows_it_is_cut(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition()
    for number in range(10):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    (log,) = tmp_path.glob("*.log")
    raw = bytearray(log.read_bytes())
    size = len(raw) // 10
    raw[6 * size + 62] ^= 0xFF
    log.write_bytes(raw)
    reboot(monkeypatch)
    reopened = open_partition()
    assert reopened.bounds() == PartitionBounds(0, 6)
    reopened.append(plain(b"new"), 1, NOW_MS)
    assert values(read_all(reopened))[-2:] == [b"5", b"new"]


def test_recovery_rebuilds_the_index(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition()
    for number in range(1000):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    (index,) = tmp_path.glob("*.index")
    before = index.read_bytes()
    index.write_bytes(b"\xff" * 77)
    reboot(monkeypatch)
    open_partition()
    assert index.read_bytes() == before


def test_damage_is_reported_with_file_and_position(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Guarantee 9: a damaged batch is never served, and what is before it is."""
    partition = open_partition()
    for number in range(10):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    (log,) = tmp_path.glob("*.log")
    raw = bytearray(log.read_bytes())
    size = len(raw) // 10
    raw[4 * size + 66] ^= 1
    log.write_bytes(raw)
    cursor = partition.cursor(0)
    assert [record.offset for record in cursor.read(1 << 20)] == [0, 1, 2, 3]
    for _ in range(2):
        with pytest.raises(CorruptLog) as caught:
            cursor.read(1 << 20)
        assert (caught.value.file, caught.value.position) == (str(log), 4 * size)
    raw[4 * size + 66] ^= 1
    log.write_bytes(raw)


def test_a_file_that_ends_too_early_is_reported(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    for number in range(10):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    (log,) = tmp_path.glob("*.log")
    raw = log.read_bytes()
    log.write_bytes(raw[: len(raw) // 2 - 10])
    cursor = partition.cursor(0)
    assert len(cursor.read(1 << 20)) == 4
    with pytest.raises(CorruptLog):
        cursor.read(1 << 20)
    log.write_bytes(raw)


WRITER = """
import sys
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.log.batch import encode_one
partition = Partition(RealFiles(), sys.argv[1], "feed/0", lambda bits: None, lambda end: ())
for number in range(10**9):
    partition.append(encode_one(b"%s-%d" % (sys.argv[2].encode(), number), None, (), 1), 1, 1)
    if number == 200:
        print("going", flush=True)
"""

STOPS_IN_THE_MIDDLE = """
import os, sys
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.log.batch import encode_one
class Files(RealFiles):
    dies = False
    def pwrite(self, fd, data, position):
        os.pwrite(fd, data[:-3] if self.dies else data, position)
        if self.dies:
            os.kill(os.getpid(), 9)
        return len(data)
files = Files()
partition = Partition(files, sys.argv[1], "feed/0", lambda bits: None, lambda end: ())
partition.append(encode_one(b"whole", None, (), 1), 1, 1)
files.dies = True
partition.append(encode_one(b"torn" * 100, None, (), 1), 1, 1)
"""


def start_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


def test_what_a_writer_that_was_killed_left_behind_is_cut(open_partition: OpenPartition, tmp_path: Path) -> None:
    with start_python(STOPS_IN_THE_MIDDLE, str(tmp_path)) as writer:
        assert writer.wait(20) == -signal.SIGKILL
    partition = open_partition()
    assert values(read_all(partition)) == [b"whole"]
    assert partition.append(plain(b"short"), 1, NOW_MS) == 1
    assert values(read_all(partition)) == [b"whole", b"short"]


def test_writers_killed_at_any_moment_lose_and_double_nothing(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Guarantee 1, for the log: what was appended is there, once, in each writer's order."""
    partition = open_partition()
    with ExitStack() as stack:
        writers = [stack.enter_context(start_python(WRITER, str(tmp_path), name)) for name in "abc"]
        for writer in writers:
            stack.callback(writer.kill)
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "going\n"
            writer.kill()
            writer.wait(10)
            partition.append(plain(b"between"), 1, NOW_MS)
    records = read_all(partition)
    assert [record.offset for record in records] == list(range(partition.end()))
    for name in (b"a", b"b", b"c"):
        own = [int(value.split(b"-")[1]) for value in values(records) if value and value.startswith(name + b"-")]
        assert own == list(range(len(own)))
        assert len(own) > 200


def test_threads_append_without_losing_any(open_partition: OpenPartition) -> None:
    partition = open_partition()
    offsets: list[int] = []

    def write() -> None:
        offsets.extend([partition.append(plain(b"x"), 1, NOW_MS) for _ in range(500)])

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(offsets) == list(range(3000))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_refuses_and_recovers(open_partition: OpenPartition, code: int) -> None:
    """Guarantee 10: what is stored stays readable, and publishing works again when space returns."""
    files = FailingFiles()
    partition = open_partition(files)
    partition.append(plain(b"before"), 1, NOW_MS)
    files.write_error = code
    for _ in range(2):
        with pytest.raises(StorageFull, match="free space"):
            partition.append(plain(b"lost"), 1, NOW_MS)
    assert values(read_all(partition)) == [b"before"]
    files.write_error = None
    assert partition.append(plain(b"after"), 1, NOW_MS) == 1
    assert values(read_all(open_partition())) == [b"before", b"after"]


def test_half_a_write_is_a_full_disk_and_leaves_nothing(open_partition: OpenPartition, tmp_path: Path) -> None:
    files = FailingFiles()
    partition = open_partition(files)
    partition.append(plain(b"before"), 1, NOW_MS)
    size = partition.size_bytes()
    files.write_at_most = 40
    with pytest.raises(StorageFull):
        partition.append(plain(b"lost"), 1, NOW_MS)
    assert partition.size_bytes() == size
    files.write_at_most = None
    partition.append(plain(b"after"), 1, NOW_MS)
    assert values(read_all(partition)) == [b"before", b"after"]


def test_a_failed_write_of_another_kind_ends_writing(open_partition: OpenPartition) -> None:
    files = FailingFiles()
    partition = open_partition(files)
    partition.append(plain(b"before"), 1, NOW_MS)
    files.write_error = errno.EIO
    with pytest.raises(StorageError):
        partition.append(plain(b"lost"), 1, NOW_MS)
    files.write_error = None
    with pytest.raises(StorageError):
        partition.append(plain(b"refused"), 1, NOW_MS)
    assert open_partition().append(plain(b"after reopening"), 1, NOW_MS) == 1


def test_a_failed_fsync_is_never_tried_again(open_partition: OpenPartition) -> None:
    files = FailingFiles()
    partition = open_partition(files)
    partition.append(plain(b"x"), 1, NOW_MS)
    files.sync_error = errno.EIO
    before = files.syncs
    with pytest.raises(StorageError, match="may be lost"):
        partition.sync()
    files.sync_error = None
    for attempt in (partition.sync, lambda: partition.append(plain(b"y"), 1, NOW_MS)):
        with pytest.raises(StorageError):
            attempt()
    assert files.syncs == before + 1


def test_one_fsync_serves_all_that_was_appended_before_it(open_partition: OpenPartition) -> None:
    files = FailingFiles()
    partition = open_partition(files)
    for _ in range(10):
        partition.append(plain(b"x"), 1, NOW_MS)
    before = files.syncs
    partition.sync()
    partition.sync()
    assert files.syncs == before + 1
    assert not partition.needs_sync


def test_appending_without_waiting_gives_way(open_partition: OpenPartition) -> None:
    from taskq.broker.log.locks import lock, unlock

    first, second = open_partition(), open_partition()
    lock(first._head_fd)
    with pytest.raises(WouldBlock):
        second.append(plain(b"x"), 1, NOW_MS, wait=False)
    unlock(first._head_fd)
    assert second.append(plain(b"x"), 1, NOW_MS, wait=False) == 0
