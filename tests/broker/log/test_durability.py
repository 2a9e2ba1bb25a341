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


def test_syncing_goes_on_while_another_partition_is_opened(tmp_path: Path) -> None:
    """It may have to be recovered, which takes as long as it takes."""
    broker = EmbeddedBroker(str(tmp_path), durability=Durability("interval", 1), partitions_default=1)
    broker.producer().send("feed", b"x")
    (partition,) = broker._directory.opened()
    with broker._directory._mutex:
        broker.producer().send("feed", b"y")
        wait_until(lambda: not partition.needs_sync, "it is synced")
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
