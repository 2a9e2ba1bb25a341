"""What fails, or is killed, at the worst moment: what was acknowledged stays, and the log goes on or says why not."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.files import RealFiles
from taskq.broker.log.head import INTENT, NAMED
from taskq.broker.port import Committed, TopicPartition, WouldBlock
from taskq.errors import BrokerUnavailable, StorageError, StorageFull
from tests.broker.log.conftest import NOW_MS, OpenPartition, plain
from tests.broker.log.test_partition import read_all, values


class Files(RealFiles):
    """The real ones, of which one call at a time can be made to fail."""

    fails: str = ""
    code = errno.EIO
    syncs = 0

    def _maybe(self, call: str) -> None:
        if call == self.fails:
            raise OSError(self.code, os.strerror(self.code))

    def open(self, path: str, *, create: bool = False, write: bool = True) -> int:
        self._maybe(f"open {os.path.splitext(path)[1]}")
        return super().open(path, create=create, write=write)

    def pwrite(self, fd: int, data: bytes, position: int, /) -> int:  # type: ignore[override]
        self._maybe("pwrite")
        return os.pwrite(fd, data, position)

    def sync(self, fd: int, /) -> None:  # type: ignore[override]
        self._maybe("sync")
        self.syncs += 1

    def sync_directory(self, path: str) -> None:
        self._maybe("sync_directory")


@pytest.mark.parametrize("fails", ["open .log", "open .index", "sync_directory"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EMFILE])
def test_a_roll_that_fails_changes_nothing(open_partition: OpenPartition, fails: str, code: int) -> None:
    files = Files()
    partition = open_partition(files, segment_bytes_max=400)
    for number in range(5):
        partition.append(plain(b"%d" % number), 1, NOW_MS)
    files.fails, files.code = fails, code
    kinds = {errno.ENOSPC: StorageFull, errno.EIO: StorageError, errno.EMFILE: BrokerUnavailable}
    with pytest.raises(kinds[code]):
        partition.append(plain(b"lost" * 20), 1, NOW_MS)
    files.fails = ""
    assert partition.append(plain(b"5"), 1, NOW_MS) == 5
    other = open_partition()
    assert other.append(plain(b"6"), 1, NOW_MS) == 6
    assert values(read_all(partition)) == [b"%d" % number for number in range(7)]


@pytest.mark.parametrize("fails", ["open .index", "sync_directory"])
def test_after_a_roll_that_failed_nothing_goes_into_a_file_that_another_process_has_removed(
    open_partition: OpenPartition, fails: str
) -> None:
    files = Files()
    ours, theirs = open_partition(files, segment_bytes_max=400), open_partition(segment_bytes_max=400)
    for number in range(5):
        ours.append(plain(b"%d" % number), 1, NOW_MS)
    ours.sync()  # the name of the first segment, too: it is the new one's that fails
    files.fails, files.code = fails, errno.EMFILE
    with pytest.raises(BrokerUnavailable):
        ours.append(plain(b"lost" * 20), 1, NOW_MS)
    files.fails = ""
    theirs.append(plain(b"5" * 80), 1, NOW_MS)  # which removes what was begun, and begins a segment of the same name
    ours.append(plain(b"6"), 1, NOW_MS)
    ours.sync()
    ours.close()
    assert values(read_all(theirs)) == [*(b"%d" % number for number in range(5)), b"5" * 80, b"6"]


KILLED_IN_A_ROLL = """
import os, sys
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.log.batch import encode_one
class Files(RealFiles):
    def sync_directory(self, path):
        if len([name for name in os.listdir(path) if name.endswith(".log")]) == 2:
            os.kill(os.getpid(), 9)
partition = Partition(Files(), sys.argv[1], "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=700)
for number in range(100):
    partition.append(encode_one(b"%d" % number, None, (), 1), 1, 1)
    print(number, flush=True)
"""


@pytest.mark.parametrize("reboots", [False, True])
def test_a_writer_killed_in_a_roll_leaves_a_log_that_goes_on(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reboots: bool
) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_ROLL, str(tmp_path)], capture_output=True, text=True, timeout=20
    )
    assert ran.returncode == -signal.SIGKILL
    acknowledged = len(ran.stdout.splitlines())
    assert len(list(tmp_path.glob("*.log"))) == 2
    if reboots:
        monkeypatch.setattr(RealFiles, "boot_id", lambda self: (7, 7))
    partition = open_partition()
    assert partition.end() == acknowledged
    assert partition.append(plain(b"s"), 1, NOW_MS) == acknowledged
    assert [record.offset for record in read_all(partition)] == list(range(acknowledged + 1))


def test_a_roll_is_not_for_those_who_can_not_wait(open_partition: OpenPartition) -> None:
    files = Files()
    partition = open_partition(files, segment_bytes_max=400)
    while partition.size_bytes() + 80 < 400:
        partition.append(plain(b"x"), 1, NOW_MS, wait=False)
    with pytest.raises(WouldBlock):
        partition.append(plain(b"x" * 80), 1, NOW_MS, wait=False)
    assert files.syncs == 0
    partition.append(plain(b"x" * 80), 1, NOW_MS)
    assert files.syncs >= 1


def test_who_can_not_wait_does_not_wait_for_a_sync_of_the_segment_before(open_partition: OpenPartition) -> None:
    files = Files()
    ours, theirs = open_partition(files), open_partition(files)
    ours.append(plain(b"0"), 1, NOW_MS)
    theirs.roll()
    with ours._syncer.mutex, pytest.raises(WouldBlock):
        ours.append(plain(b"lost"), 1, NOW_MS, wait=False)
    assert ours.append(plain(b"1"), 1, NOW_MS, wait=False) == 1
    assert values(read_all(theirs)) == [b"0", b"1"]


def test_who_can_not_wait_leaves_what_a_dead_writer_left_to_others(open_partition: OpenPartition) -> None:
    files = Files()
    partition = open_partition(files)
    partition.append(plain(b"0"), 1, NOW_MS)
    partition._words[INTENT] += 1
    with pytest.raises(WouldBlock):
        partition.append(plain(b"lost"), 1, NOW_MS, wait=False)
    assert files.syncs == 0, "cutting it is synced"
    assert partition.append(plain(b"1"), 1, NOW_MS) == 1
    assert files.syncs == 1


def test_an_append_that_failed_leaves_the_one_before_to_be_synced(open_partition: OpenPartition) -> None:
    files = Files()
    partition = open_partition(files)
    partition.append(plain(b"acknowledged"), 1, NOW_MS)
    files.fails, files.code = "pwrite", errno.ENOSPC
    with pytest.raises(StorageFull):
        partition.append(plain(b"lost"), 1, NOW_MS)
    assert partition.needs_sync
    syncs = files.syncs
    partition.sync()
    assert files.syncs == syncs + 1


def test_a_closed_partition_says_so(open_partition: OpenPartition) -> None:
    partition = open_partition()
    partition.append(plain(b"x"), 1, NOW_MS)
    other = open_partition()
    partition.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        partition.append(plain(b"x"), 1, NOW_MS)
    with pytest.raises(BrokerUnavailable, match="closed"):
        partition.wait_for_append(1)
    assert other.end() == 1


def test_a_flusher_outlives_what_goes_wrong(tmp_path: Path) -> None:
    from tests.processes import wait_until

    broker = EmbeddedBroker(str(tmp_path))
    producer = broker.producer()
    producer.send("feed", b"x", b"key")
    (partition,) = [p for p in broker._directory.opened() if p.end()]
    files, fails = partition._files, Files()
    fails.fails, fails.code = "sync_directory", errno.EMFILE
    partition._syncer._files, partition._words[NAMED] = fails, 0
    producer.send("feed", b"x", b"key")
    wait_until(lambda: broker._flusher.unsynced_s > 0.2, "the flusher tried")
    partition._syncer._files = files
    producer.send("feed", b"x", b"key")
    wait_until(lambda: not partition.needs_sync, "and tries again")
    broker.close()


def test_commits_that_outlived_their_records_are_brought_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 1: what is published after a power cut is run, though its offsets had been committed before."""
    tp = TopicPartition("feed", 0)
    broker = EmbeddedBroker(str(tmp_path), partitions_default=1)
    for _ in range(10):
        broker.producer().send("feed", b"x")
    consumer = broker.consumer("group", ["feed"])
    consumer.poll(5)
    consumer.commit({tp: Committed(8, b"and some above")})
    broker.close()
    (log,) = (tmp_path / "topics" / "feed" / "0").glob("*.log")
    (log.parent / "checkpoint").unlink()  # nothing of it had been synced
    log.write_bytes(log.read_bytes()[: log.stat().st_size // 2])
    monkeypatch.setattr(RealFiles, "boot_id", lambda self: (8, 8))
    again = EmbeddedBroker(str(tmp_path))
    for _ in range(10):
        again.producer().send("feed", b"y")
    assert again.consumer("group", ["feed"]).poll(5).assigned == {tp: Committed(5)}
    again.close()


FILLS_A_DISK = """
import os, resource, signal, sys
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.files import RealFiles
from taskq.broker.log.offsets import Lease
from taskq.errors import StorageFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
broker = EmbeddedBroker(sys.argv[1], partitions_default=1)
broker.producer().send("feed", b"x")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
take = lambda: Lease.take(RealFiles(), sys.argv[1], "group", "feed", 0, "me")
for what in (lambda: broker.producer().send("new", b"x"), take):
    try:
        what()
        print("no error")
    except StorageFull as error:
        print("full")
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
broker.producer().send("new", b"x")
assert take()
print("recovered")
os._exit(0)
"""


def test_new_topics_and_leases_need_room_and_say_so(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FILLS_A_DISK, str(tmp_path)], capture_output=True, text=True, timeout=20
    )
    assert ran.stdout.splitlines() == ["full", "full", "recovered"], ran.stderr
