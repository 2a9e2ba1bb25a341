"""Syncing: one fsync serves all who wait, a failed one is told to everybody, and what nobody syncs is an error."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.log.segment import ActiveSegment
from taskq.config import Durability
from taskq.errors import BrokerUnavailable, StorageError
from tests.broker.log.conftest import NOW_MS, OpenPartition, plain
from tests.broker.log.test_partition import read_all, values
from tests.processes import wait_until


class SyncFiles(RealFiles):
    """The real ones: counts syncs, holds them up, makes them fail."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs = 0
        self.writes: list[tuple[int, int]] = []
        self.error: int | None = None
        self.go_on = threading.Event()
        self.go_on.set()

    def sync(self, fd: int, /) -> None:  # type: ignore[override]
        self.syncs += 1
        assert self.go_on.wait(20)
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))

    def pwrite(self, fd: int, data: bytes, position: int, /) -> int:  # type: ignore[override]
        self.writes.append((position, len(data)))
        return os.pwrite(fd, data, position)


def append(partition: Partition, value: bytes) -> int:
    return partition.append(plain(value), 1, NOW_MS)


def append_and_fail(partition: Partition, files: SyncFiles, count: int, synced: int) -> list[int]:
    """Append `count` numbers, sync after `synced` of them, and fail to at the end. Returns the sizes of the log."""
    sizes = [0]
    for number in range(count):
        append(partition, b"%d" % number)
        sizes.append(partition.size_bytes())
        if number + 1 == synced:
            partition.sync()
    files.error = errno.EIO
    with pytest.raises(StorageError):
        partition.sync()
    files.error = None
    return sizes


def test_what_another_process_synced_need_not_be_synced_again(open_partition: OpenPartition) -> None:
    files = SyncFiles()
    ours, theirs = open_partition(files), open_partition(files)
    append(theirs, b"theirs")
    append(ours, b"ours")
    ours.sync()
    assert not theirs.needs_sync
    theirs.sync()
    assert files.syncs == 1


def test_one_fsync_serves_all_that_wait_threads_and_processes(open_partition: OpenPartition) -> None:
    """Group commit: while one fsync runs, many append; the next one serves all of them."""
    files = SyncFiles()
    opened = [open_partition(files) for _ in range(3)]
    files.go_on.clear()
    append(opened[0], b"first")
    first = threading.Thread(target=opened[0].sync)
    first.start()
    wait_until(lambda: files.syncs == 1, "the first sync is under way")
    done: list[int] = []

    def publish(partition: Partition) -> None:
        offset = append(partition, b"x")
        partition.sync()
        done.append(offset)

    threads = [threading.Thread(target=publish, args=(opened[number % 3],)) for number in range(9)]
    for thread in threads:
        thread.start()
    wait_until(lambda: opened[0].end() == 10, "all have appended")
    assert not done, "none is told that it is safe before it is"
    files.go_on.set()
    for thread in [first, *threads]:
        thread.join(20)
    assert sorted(done) == list(range(1, 10))
    assert files.syncs == 2


def test_a_failed_fsync_is_told_to_every_process(open_partition: OpenPartition) -> None:
    files = SyncFiles()
    ours, theirs = open_partition(files), open_partition(files)
    append(theirs, b"0")
    append(ours, b"1")
    files.error = errno.EIO
    with pytest.raises(StorageError, match="may be lost"):
        ours.sync()
    files.error = None
    for partition in (ours, theirs):
        with pytest.raises(StorageError, match="refused until the broker is reopened"):
            append(partition, b"refused")
    with pytest.raises(StorageError):
        theirs.sync()
    assert files.syncs == 1, "never tried again"


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


def test_what_is_gone_after_a_failed_fsync_leaves_a_gap_and_no_offset_is_given_out_twice(
    open_partition: OpenPartition, tmp_path: Path
) -> None:
    files = SyncFiles()
    ends = append_and_fail(open_partition(files), files, count=6, synced=3)
    (log,) = tmp_path.glob("*.log")
    raw = bytearray(log.read_bytes())
    raw[ends[4] : ends[5]] = bytes(ends[5] - ends[4])  # a page that was dropped, and read again from the disk
    log.write_bytes(raw)
    reopened = open_partition(files)
    assert reopened.end() == 6
    assert append(reopened, b"new") == 6
    assert [record.offset for record in read_all(reopened)] == [0, 1, 2, 3, 6]


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


def test_a_dead_flusher_is_an_error_for_publishers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody syncs must not pass for published."""
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    broker = EmbeddedBroker(str(tmp_path), durability=Durability("interval", 1))
    producer = broker.producer()

    def dies() -> None:
        raise SystemExit("the thread is ended")

    monkeypatch.setattr(broker._flusher, "sync", dies)
    producer.send("feed", b"x")
    wait_until(lambda: broker._flusher.death is not None, "it died")
    for _ in range(2):
        with pytest.raises(StorageError, match=r"has ended .*\. Restart this process"):
            producer.send("feed", b"x")
    with pytest.raises(StorageError):
        producer.send_many("feed", [])
    monkeypatch.undo()
    broker.close()


def test_fsync_mode_returns_only_when_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 1, of a power cut: the call that publishes is the call that syncs."""
    synced: list[str] = []
    monkeypatch.setattr(RealFiles, "sync", staticmethod(lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))))
    broker = EmbeddedBroker(str(tmp_path), durability=Durability("fsync"), partitions_default=1)
    producer = broker.producer()
    for count in range(1, 4):
        producer.send("feed", b"x")
        assert sum(path.endswith(".log") for path in synced) == count
    broker.close()


def test_what_could_not_be_synced_is_tried_again_though_nobody_publishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = EmbeddedBroker(str(tmp_path), durability=Durability("interval", 1), partitions_default=1)
    fails = [True]
    sync_directory = RealFiles.sync_directory

    def failing(self: RealFiles, path: str) -> None:
        if fails[0] and path.endswith("/0"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sync_directory(self, path)

    monkeypatch.setattr(RealFiles, "sync_directory", failing)
    broker.producer().send("feed", b"x")
    (partition,) = broker._directory.opened()
    wait_until(lambda: broker._flusher.unsynced_s > 0.05, "it can't")
    assert partition.needs_sync
    fails[0] = False
    wait_until(lambda: not partition.needs_sync, "and tries again")
    wait_until(lambda: broker._flusher.unsynced_s == 0, "nothing is left")
    broker.close()


def test_a_segment_that_was_shut_is_opened_again_to_be_synced(open_partition: OpenPartition) -> None:
    """Too many may be open just between an append and its sync."""
    files = SyncFiles()
    partition = open_partition(files)
    append(partition, b"x")
    assert not partition.shut(), "not while something is unsynced"
    assert partition._segment is not None
    partition._segment.close()
    partition._segment, partition._generation = None, -1
    partition.sync()
    assert files.syncs == 1
    assert not partition.needs_sync
    assert partition.shut()


def test_a_thread_that_waits_to_sync_finds_the_segment_that_is_open_then(open_partition: OpenPartition) -> None:
    files = SyncFiles()
    partition = open_partition(files)
    append(partition, b"x")
    old = partition._segment
    assert old is not None
    with partition._syncer.mutex:
        waiting = threading.Thread(target=partition.sync)
        waiting.start()
        partition._segment = ActiveSegment(files, partition.directory, old.base)
        old.close()
    waiting.join(20)
    assert files.syncs == 1
    append(partition, b"nothing has failed")
    partition.sync()


def test_who_may_have_lost_something_in_a_repair_publishes_no_more(open_partition: OpenPartition) -> None:
    files = SyncFiles()
    first, second = open_partition(files), open_partition(files)
    append(first, b"unsynced")
    append(second, b"x")
    files.error = errno.EIO
    with pytest.raises(StorageError):
        second.sync()
    files.error = None
    third = open_partition(files)  # repairs
    append(first, b"y")
    with pytest.raises(StorageError, match="repaired"):
        first.sync()
    end = third.end()
    with pytest.raises(StorageError):
        append(first, b"nobody would sync this")
    assert third.end() == end


def test_what_is_refused_for_good_is_a_new_error_each_time(open_partition: OpenPartition) -> None:
    """The same one would grow by the traces, and with them the frames, of all who got it."""
    files = SyncFiles()
    partition = open_partition(files)
    append(partition, b"x")
    files.error = errno.EIO
    with pytest.raises(StorageError):
        partition.sync()
    depths = set()
    for _ in range(5):
        with pytest.raises(StorageError) as caught:
            append(partition, b"x")
        depths.add(len(caught.traceback))
    assert len(depths) == 1


def test_settings_that_could_not_be_read_are_read_again(tmp_path: Path) -> None:
    fails = [True]

    def altered() -> int:
        if fails and fails.pop():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return 200

    partition = Partition(SyncFiles(), str(tmp_path), "feed/0", lambda bits: None, lambda end: (), altered=altered)
    with pytest.raises(BrokerUnavailable, match="too many open files"):
        append(partition, b"x")
    for number in range(6):
        append(partition, b"%d" % number)
    partition.close()
    assert len(list(tmp_path.glob("*.log"))) > 1
