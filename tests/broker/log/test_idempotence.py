"""A batch that is sent again is not a second record: over processes, rolls, reopening, reboots and compaction."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskq.broker.log import retention
from taskq.broker.log.batch import ProducerStamp, encode_many
from taskq.broker.log.files import RealFiles
from taskq.broker.log.idempotence import (
    IdempotentAppender,
    next_producer_id,
    remember,
    snapshot_offsets,
    write_snapshot,
)
from taskq.broker.log.names import snapshot
from taskq.broker.log.partition import Partition
from taskq.broker.log.producers import OutOfOrderSequence, ProducerFenced, Producers
from taskq.broker.port import Message, WouldBlock
from taskq.errors import CorruptLog, StorageError
from taskq.topics import TopicSettings
from tests.broker.log.conftest import NOW_MS, OpenPartition, plain
from tests.broker.log.test_partition import read_all, reboot, values

FILES = RealFiles()


def sent(sequence: int, *texts: bytes, producer: int = 1, epoch: int = 0) -> bytes:
    return encode_many([Message(text) for text in texts], NOW_MS, ProducerStamp(producer, epoch, sequence))


def appender(partition: Partition, files: RealFiles = FILES) -> IdempotentAppender:
    return IdempotentAppender(files, partition, lambda: NOW_MS)


def test_a_batch_that_is_sent_again_gets_its_old_offset(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    appends = appender(partition)
    assert appends.append(sent(0, b"a", b"b")) == 0
    assert partition.append(plain(b"between"), 1, NOW_MS) == 2
    assert appends.append(sent(2, b"c")) == 3
    assert appends.append(sent(0, b"a", b"b")) == 0
    assert appends.append(sent(2, b"c")) == 3
    assert values(read_all(partition)) == [b"a", b"b", b"between", b"c"]
    with pytest.raises(OutOfOrderSequence):
        appends.append(sent(4, b"too far"))
    appends.append(sent(0, b"d", epoch=1))
    with pytest.raises(ProducerFenced):
        appends.append(sent(3, b"old"))
    assert partition.append(plain(b"the locks are free"), 1, NOW_MS) == 5
    appends.close()


def test_a_batch_of_nobody_is_appended_each_time(open_partition: OpenPartition, tmp_path: Path) -> None:
    appends = appender(open_partition())
    assert [appends.append(plain(b"a")), appends.append(plain(b"a"))] == [0, 1]
    appends.close()


@pytest.mark.parametrize("how", ["another process", "reopened", "rebooted", "rebooted, snapshots gone bad"])
def test_who_comes_after_knows_what_was_sent(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    partition = open_partition(segment_bytes_max=400)
    first = appender(partition)
    for number in range(20):  # rolls several times
        first = appender(partition)
        assert first.append(sent(number, b"%d" % number)) == number
        if number % 3:
            first.close()
    first.append(sent(0, b"other", producer=2))
    if how != "another process":
        first.close()
        partition.close()
    if how.startswith("rebooted"):
        reboot(monkeypatch)
    if how.endswith("bad"):
        for path in tmp_path.glob("*.snapshot"):
            path.write_bytes(b"\0" * 20)
    reopened = open_partition(segment_bytes_max=400)
    again = appender(reopened)
    assert again.append(sent(19, b"19")) == 19
    assert again.append(sent(15, b"15")) == 15
    with pytest.raises(OutOfOrderSequence):
        again.append(sent(14, b"14"))
    assert again.append(sent(0, b"other", producer=2)) == 20
    assert again.append(sent(20, b"20")) == 21
    again.close()
    first.close()


def test_processes_take_turns(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Two that share a producer's numbers (a connection that moved): each sees at once what the other has appended."""
    here, there = open_partition(segment_bytes_max=500), open_partition(segment_bytes_max=500)
    both = [appender(here), appender(there)]
    for number in range(30):
        assert both[number % 2].append(sent(number, b"%d" % number)) == number
        assert both[(number + 1) % 2].append(sent(number, b"%d" % number)) == number
    assert values(read_all(here)) == [b"%d" % number for number in range(30)]
    for one in both:
        one.close()


def test_a_partition_without_idempotent_producers_has_no_snapshot(
    open_partition: OpenPartition, tmp_path: Path
) -> None:
    partition = open_partition(segment_bytes_max=300)
    for _ in range(20):
        partition.append(plain(b"x" * 30), 1, NOW_MS)
    remember(FILES, partition, partition.head.state(), NOW_MS)
    assert not snapshot_offsets(FILES, str(tmp_path))


def test_snapshots_say_only_what_is_on_stable_storage(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Else a power cut could take back the batch, and the retry would be answered with an offset that is another's."""
    partition = open_partition()
    partition.append(plain(b"of nobody"), 1, NOW_MS)
    appends = appender(partition)
    appends.append(sent(0, b"a" * 1000))
    appends.append(sent(1, b"b"))
    appends.close()  # nothing was synced
    assert snapshot_offsets(FILES, str(tmp_path)) == [0]
    partition.sync()
    again = appender(partition)
    again.append(sent(1, b"b"))
    again.close()
    assert max(snapshot_offsets(FILES, str(tmp_path))) == 3


def test_after_a_power_cut_what_was_lost_is_appended_anew(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition()
    appends = appender(partition)
    appends.append(sent(0, b"kept"))
    partition.sync()
    size = (tmp_path / f"{0:020}.log").stat().st_size
    appends.append(sent(1, b"lost"))
    appends.close()
    partition.close()
    (tmp_path / "checkpoint").unlink()  # closing wrote it, as a process does that ends in order
    for path in tmp_path.glob("*.snapshot"):
        if path.stem != f"{0:020}":
            path.unlink()
    with (tmp_path / f"{0:020}.log").open("r+b") as log:
        log.truncate(size)
    reboot(monkeypatch)
    reopened = open_partition()
    again = appender(reopened)
    assert again.append(sent(0, b"kept")) == 0
    assert again.append(sent(1, b"lost")) == 1
    assert values(read_all(reopened)) == [b"kept", b"lost"]
    again.close()


class RecordingFiles(RealFiles):
    """Says what may be found after a power cut: names that were not synced may be gone, removals be there."""

    def __init__(self) -> None:
        super().__init__()
        self.durable: set[int] = set()
        self.fewest: list[int] = []
        """After each removal, how many snapshots surely are there."""

    def unlink(self, path: str, /) -> None:  # type: ignore[override]
        os.unlink(path)
        if path.endswith(".snapshot"):
            self.durable.discard(int(Path(path).stem))
            self.fewest.append(len(self.durable))

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        self.durable = set(snapshot_offsets(self, path))


def test_older_snapshots_go_once_the_names_of_newer_ones_are_durable(tmp_path: Path) -> None:
    """Else one power cut could leave none, and a batch that is sent again would be a second record."""
    files = RecordingFiles()
    for offset in range(6):
        write_snapshot(files, str(tmp_path), offset, Producers().encode(offset))
    assert files.fewest == [2, 2, 2, 2]
    assert snapshot_offsets(FILES, str(tmp_path)) == [4, 5]


def test_a_snapshot_past_the_end_is_of_a_log_that_is_gone(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    appends = appender(partition)
    appends.append(sent(0, b"a"))
    partition.sync()
    appends.append(sent(1, b"b"))
    appends.close()
    partition.sync()
    real = max(snapshot_offsets(FILES, str(tmp_path)))
    os.rename(snapshot(str(tmp_path), real), snapshot(str(tmp_path), 99))
    again = appender(open_partition())
    assert again.append(sent(1, b"b")) == 1
    assert 99 not in snapshot_offsets(FILES, str(tmp_path))
    again.close()


class Syncs(RealFiles):
    def __init__(self) -> None:
        super().__init__()
        self.synced: list[int] = []

    def sync(self, fd: int, /) -> None:  # type: ignore[override]
        self.synced.append(os.fstat(fd).st_ino)
        os.fdatasync(fd)


def test_a_retry_is_made_durable_though_another_process_appended_it(
    open_partition: OpenPartition, tmp_path: Path
) -> None:
    appender(open_partition()).append(sent(0, b"a"))  # killed before it synced
    files = Syncs()
    partition = open_partition(files)
    appends = appender(partition, files)
    assert appends.append(sent(0, b"a")) == 0
    partition.sync()
    assert (tmp_path / f"{0:020}.log").stat().st_ino in files.synced
    appends.close()


def test_a_repair_after_a_failed_fsync_is_noticed(open_partition: OpenPartition, tmp_path: Path) -> None:
    """What one process knows of another one's batch, which the failed fsync took with it, is forgotten."""

    class Fails(RealFiles):
        def sync(self, fd: int, /) -> None:  # type: ignore[override]
            raise OSError(5, "Input/output error")

    bystander = open_partition()
    knows = appender(bystander)
    knows.append(sent(0, b"kept"))
    bystander.sync()
    size = (tmp_path / f"{0:020}.log").stat().st_size
    failing = open_partition(Fails())
    failing.append(sent(1, b"gone"), 1, NOW_MS)
    assert knows.append(sent(1, b"gone")) == 1  # it knows
    with pytest.raises(StorageError):
        failing.sync()
    with (tmp_path / f"{0:020}.log").open("r+b") as log:
        log.truncate(size)  # the system dropped what it could not write
    open_partition()
    assert knows.append(sent(1, b"gone")) == 2
    assert values(read_all(bystander)) == [b"kept", b"gone"]
    knows.close()


def test_what_is_removed_is_remembered_before(open_partition: OpenPartition, tmp_path: Path) -> None:
    """As retention and compaction do it: the batch itself may go, that it was sent stays known."""
    partition = open_partition(segment_bytes_max=300)
    appends = appender(partition)
    appends.append(sent(0, b"early"))
    for number in range(20):
        partition.append(plain(b"%d" % number * 20), 1, NOW_MS)
    remember(FILES, partition, partition.head.state(), NOW_MS)
    closed = sorted(tmp_path.glob("*.log"))[:-1]
    assert len(closed) > 2
    kept = {path: path.read_bytes() for path in closed}
    for path in closed:
        path.unlink()
    late = appender(open_partition())
    assert late.append(sent(0, b"early")) == 0
    assert appends.append(sent(0, b"early")) == 0  # one that has been idle meanwhile
    for path, raw in kept.items():
        path.write_bytes(raw)
    late.close()
    appends.close()


def test_retention_remembers_what_it_removes(open_partition: OpenPartition) -> None:
    partition = open_partition(segment_bytes_max=300)
    appends = appender(partition)
    appends.append(sent(0, b"early"))
    for number in range(20):
        partition.append(plain(b"%d" % number * 20), 1, NOW_MS)
    keeps_nothing = TopicSettings(retention_ms=1, unfinished="delete")
    assert retention.clean(FILES, partition, keeps_nothing, NOW_MS + 10, 0)
    assert partition.bounds().start > 5
    late = appender(partition)
    assert late.append(sent(0, b"early")) == 0
    assert appends.append(sent(1, b"next")) == partition.end() - 1
    late.close()
    appends.close()


def test_damage_is_an_error_for_idempotent_producers_only(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    appends = appender(partition)
    appends.append(sent(0, b"a"))
    path = tmp_path / f"{0:020}.log"
    raw = bytearray(path.read_bytes())
    raw[50] ^= 1
    path.write_bytes(raw)
    fresh = appender(open_partition())
    with pytest.raises(CorruptLog, match="CRC32C"):
        fresh.append(sent(1, b"b"))
    assert partition.append(plain(b"goes on"), 1, NOW_MS) == 1
    raw[50] ^= 1
    path.write_bytes(raw + path.read_bytes()[len(raw) :])
    fresh.close()
    appends.close()


def test_an_idempotent_append_that_may_not_wait_gives_way(open_partition: OpenPartition, tmp_path: Path) -> None:
    appends = appender(open_partition())
    appends._mutex.acquire()
    with pytest.raises(WouldBlock):
        appends.append(sent(0, b"a"), wait=False)
    appends._mutex.release()
    assert appends.append(sent(0, b"a"), wait=False) == 0
    appends.close()


KILLED = """
import os, sys
from taskq.broker.log.partition import Partition
from tests.broker.log.test_idempotence import FILES, appender, sent
partition = Partition(FILES, sys.argv[1], "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=2000)
appends = appender(partition)
first, kill_at, how = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if how == "written":  # before it is visible
    publish = partition._publish
    def die(*arguments):
        if partition._next_offset > kill_at:
            os.kill(os.getpid(), 9)
        return publish(*arguments)
    partition._publish = die
for number in range(first, 1000):
    offset = appends.append(sent(number, b"%d" % number))
    if how == "visible" and number == kill_at:
        os.kill(os.getpid(), 9)  # before it is acknowledged
    print(number, offset, flush=True)
"""


def test_a_writer_killed_before_its_acknowledgement_sends_again(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Each writer begins with what was not acknowledged to the one before, as a client does that connects again."""
    first, acknowledged = 0, []
    for turn in range(6):
        how = "visible" if turn % 2 else "written"
        script = [sys.executable, "-c", KILLED, str(tmp_path), str(first), str(first + 7), how]
        found = subprocess.run(script, capture_output=True, text=True, timeout=30)
        assert found.returncode == -signal.SIGKILL, found.stderr
        acknowledged += [line.split() for line in found.stdout.splitlines()]
        first = int(acknowledged[-1][0]) + 1
    partition = open_partition()
    appends = appender(partition)
    appends.append(sent(first, b"%d" % first))
    assert [offset for number, offset in acknowledged if number != offset] == []
    assert values(read_all(partition)) == [b"%d" % number for number in range(first + 1)]
    appends.close()


def _take_ids(root: str, count: int) -> list[int]:
    return [next_producer_id(FILES, root) for _ in range(count)]


def test_producer_ids_are_given_out_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("forkserver").Pool(3) as pool:
        given_out = pool.starmap(_take_ids, [(str(tmp_path), 10)] * 3)
    assert sorted(number for some in given_out for number in some) == list(range(30))
    assert next_producer_id(FILES, str(tmp_path)) == 30
    (tmp_path / "producer-ids").write_bytes(b"\0\0")
    with pytest.raises(StorageError, match="producer-ids"):
        next_producer_id(FILES, str(tmp_path))
