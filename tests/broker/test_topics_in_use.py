"""Topics altered and deleted by one process while others publish to them and read them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from taskq.broker.cleaner import Cleaner
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import names
from taskq.broker.log.files import RealFiles
from taskq.broker.port import Committed, Polled, TopicPartition
from taskq.config import Durability
from taskq.errors import StorageFull, TopicNotFound
from tests.processes import wait_until

PUBLISHER = """
import os, sys, threading
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.port import Message
from taskq.config import Durability
broker = EmbeddedBroker(sys.argv[1], partitions_default=2, durability=Durability.parse(sys.argv[3]))
producer, name, number = broker.producer(), sys.argv[2], 0
begun = os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT)
told_to_stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), told_to_stop.set()), daemon=True).start()
while not told_to_stop.is_set():
    os.pwrite(begun, number.to_bytes(8, "big"), 0)
    if number % 10:
        producer.send("feed", f"{name} {number}".encode())
    else:
        producer.send_many("feed", [Message(f"{name} {number} {part}".encode()) for part in range(5)])
    sys.stdout.write(f"{number}\\n")  # acknowledged
    if number % 7 == 0:
        sys.stdout.flush()
    number += 1
"""


class Publisher:
    def __init__(self, root: Path, name: str, durability: str) -> None:
        self.name = name
        self._begun = root.with_name(f"{root.name}-{name}")
        command = [sys.executable, "-u", "-c", PUBLISHER, str(root), name, durability, str(self._begun)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        self.acknowledged = -1
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.acknowledged = int(line)

    @property
    def begun(self) -> int:
        """The last number it has begun to publish, as of now: what it prints is read later."""
        return int.from_bytes(self._begun.read_bytes(), "big")

    def stop(self) -> str:
        """Have it end; what it said on its standard error."""
        assert self.process.stdin is not None
        assert self.process.stderr is not None
        self.process.stdin.close()
        said = self.process.stderr.read()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return said


def went_on(publishers: Sequence[Publisher], since: Sequence[int], count: int) -> bool:
    return all(one.acknowledged > n + count for one, n in zip(publishers, since, strict=True))


@contextmanager
def opened(root: Path, durability: str = "interval:100") -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(str(root), durability=Durability.parse(durability), partitions_default=2)
    try:
        yield broker
    finally:
        broker.close()


def published(broker: EmbeddedBroker, topic: str = "feed") -> Counter[str]:
    reader, found = broker.reader(), Counter[str]()
    for number in range(broker.admin().partitions(topic)):
        offset = 0
        while records := reader.read(TopicPartition(topic, number), offset):
            offset = records[-1].offset + 1
            found.update(record.value.decode() for record in records if record.value is not None)
    return found


@pytest.mark.parametrize("durability", ["os", "interval:20", "fsync"])
def test_what_is_acknowledged_after_a_deletion_is_there_once(tmp_path: Path, durability: str) -> None:
    """Two processes publish all the time, one by one and many at once; a third deletes the topic again and again."""
    with opened(tmp_path) as broker:
        publishers = [Publisher(tmp_path, name, durability) for name in ("a", "b")]
        try:
            admin = broker.admin()
            for _ in range(15):
                seen = [one.acknowledged for one in publishers]
                wait_until(partial(went_on, publishers, seen, 20), "they go on")
                if "feed" in admin.topics():
                    admin.delete_topic("feed")
            # What they had begun by now may be in the topic that is gone; what they begin later can't.
            settled = [one.begun for one in publishers]
            wait_until(lambda: went_on(publishers, settled, 200), "they go on")
        finally:
            said = [one.stop() for one in publishers]
        assert said == ["", ""]
        there = published(broker)
        assert not {value: count for value, count in there.items() if count > 1}, "twice"
        for publisher, since in zip(publishers, settled, strict=True):
            for number in range(since + 2, publisher.acknowledged + 1):
                parts = [""] if number % 10 else [f" {part}" for part in range(5)]
                for part in parts:
                    assert there[f"{publisher.name} {number}{part}"] == 1, f"lost: {publisher.name} {number}{part}"


def test_other_processes_notice_new_partitions(tmp_path: Path) -> None:
    with opened(tmp_path) as broker:
        publisher = Publisher(tmp_path, "a", "os")
        try:
            wait_until(lambda: publisher.acknowledged > 20, "it publishes")
            broker.admin().alter_topic("feed", 5)
            tp = TopicPartition("feed", 4)
            wait_until(lambda: broker.reader().bounds(tp).end > 0, "it uses the last one", within_s=10)
        finally:
            said = publisher.stop()
        assert said == ""


def test_other_processes_notice_the_size_of_segments(tmp_path: Path) -> None:
    with opened(tmp_path) as broker:
        publisher = Publisher(tmp_path, "a", "os")
        try:
            wait_until(lambda: publisher.acknowledged > 20, "it publishes")
            broker.admin().alter_topic("feed", segment_bytes=4096)
            where = tmp_path / "topics" / "feed"
            wait_until(lambda: len(list(where.glob("0/*.log"))) > 3, "it begins new segments", within_s=10)
        finally:
            said = publisher.stop()
        assert said == ""
        assert max(path.stat().st_size for path in where.glob("0/*.log")) <= 200_000


MEMBER = """
import sys, time
from taskq.broker.embedded import EmbeddedBroker
broker = EmbeddedBroker(sys.argv[1], partitions_default=2)
consumer = broker.consumer("group", ["feed"])
while True:
    polled = consumer.poll(5)
    for tp in polled.assigned: print("assigned", tp, flush=True)
    for tp in polled.lost: print("lost", tp, flush=True)
    for tp, records in polled.fetched:
        for record in records: print("record", tp, record.offset, record.value.decode(), flush=True)
"""


def test_a_member_in_another_process_loses_and_takes_up(tmp_path: Path) -> None:
    with opened(tmp_path) as broker:
        command = [sys.executable, "-c", MEMBER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as member:
            assert member.stdout is not None
            try:
                broker.producer().send("feed", b"old", b"key")
                lines = [member.stdout.readline().split() for _ in range(3)]
                assert sorted(line[0] for line in lines) == ["assigned", "assigned", "record"]
                broker.admin().delete_topic("feed")
                lines = [member.stdout.readline().split() for _ in range(2)]
                assert sorted(lines) == [["lost", "feed/0"], ["lost", "feed/1"]]
                broker.producer().send("feed", b"new", b"key")
                lines = [member.stdout.readline().split() for _ in range(3)]
                assert [line[0] for line in lines] == ["assigned", "assigned", "record"]
                assert lines[2][2:] == ["0", "new"]
            finally:
                member.kill()


def test_a_deletion_is_noticed_within_a_tick(tmp_path: Path) -> None:
    with opened(tmp_path) as broker, opened(tmp_path) as other:
        consumer = broker.consumer("group", ["feed"])
        wait_until(lambda: consumer.poll(1).assigned, "it is assigned")
        polls: list[Polled] = []
        thread = threading.Thread(target=lambda: polls.append(consumer.poll(20)))
        thread.start()
        other.admin().delete_topic("feed")
        thread.join(2)
        assert [polled.lost for polled in polls] == [{TopicPartition("feed", 0), TopicPartition("feed", 1)}]


def test_what_a_partition_opened_before_a_deletion_can_not_reach_the_next_topic(tmp_path: Path) -> None:
    with opened(tmp_path) as broker, opened(tmp_path) as other:
        broker.producer().send("feed", b"old", b"key")
        (partition,) = [one for one in broker._directory.opened() if one.end()]
        other.admin().delete_topic("feed")
        other.producer().send("feed", b"new", b"key")
        before = {path: path.read_bytes() for path in (tmp_path / "topics" / "feed").rglob("*") if path.is_file()}
        with pytest.raises(TopicNotFound):
            partition.append(b"\0" * 70, 1, 1)
        assert not partition.needs_sync
        partition.close()
        with pytest.raises(TopicNotFound):
            partition.append(b"\0" * 70, 1, 1)
        after = {path: path.read_bytes() for path in (tmp_path / "topics" / "feed").rglob("*") if path.is_file()}
        assert after == before


class Dying(Exception):
    pass


@pytest.mark.parametrize("call", ["sync_directory", "remove_tree", "rename"])
@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("finisher", ["cleaner", "producer"])
def test_a_deleter_that_dies_leaves_what_the_next_one_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int, finisher: str
) -> None:
    with opened(tmp_path, "os") as broker, opened(tmp_path, "os") as other:
        producer = other.producer()
        for number in range(10):
            producer.send("feed", b"old %d" % number)
        consumer = broker.consumer("group", ["feed"])
        wait_until(lambda: consumer.poll(1).assigned, "it is assigned")
        consumer.commit({TopicPartition("feed", 0): Committed(3)})
        consumer.close()
        calls = [0]
        real = getattr(RealFiles, call)

        def dies(*arguments: object) -> None:
            calls[0] += 1
            if calls[0] == nth:
                raise Dying
            real(*arguments)

        monkeypatch.setattr(RealFiles, call, staticmethod(dies) if call == "rename" else dies)
        try:
            broker.admin().delete_topic("feed")
        except Dying:
            pass
        else:
            assert calls[0] < nth
        monkeypatch.undo()
        if (call, nth) == ("rename", 1):  # the first step of all
            assert sum(published(broker).values()) == 10
            return
        assert broker.admin().topics() == []
        if finisher == "cleaner":
            assert Cleaner(other._directory).clean()
            assert os.listdir(tmp_path / "topics") == []
        else:
            broker.producer().send_many("feed", [])  # which makes it anew
        producer.send("feed", b"new")
        assert published(broker) == {"new": 1}
        assert not broker.admin().describe_group("group").committed
        assert [name for name in os.listdir(tmp_path / "topics") if name.endswith(names.UNFINISHED)] == []


@pytest.mark.parametrize("change", ["create", "alter"])
def test_a_full_disk_leaves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    with opened(tmp_path) as broker:
        admin = broker.admin()
        admin.create_topic("feed", 2, retention_ms=1000)
        real, full = RealFiles.pwrite, [True]

        def pwrite(fd: int, data: bytes, position: int) -> int:
            if full[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data, position)

        monkeypatch.setattr(RealFiles, "pwrite", staticmethod(pwrite))

        def do() -> None:
            if change == "create":
                admin.create_topic("posts", 3)
            else:
                admin.alter_topic("feed", 3, retention_ms=2000)

        with pytest.raises(StorageFull):
            do()
        assert admin.topics() == ["feed"]
        assert os.listdir(tmp_path / "topics") == ["feed"]
        monkeypatch.undo()
        description = admin.describe_topic("feed")
        assert (len(description.partitions), description.settings.retention_ms) == (2, 1000)
        do()
        assert admin.partitions("posts" if change == "create" else "feed") == 3


def test_a_topic_can_be_deleted_from_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened(tmp_path) as broker:
        broker.producer().send("feed", b"x" * 1000)
        monkeypatch.setattr(RealFiles, "pwrite", staticmethod(full))
        broker.admin().delete_topic("feed")
        assert os.listdir(tmp_path / "topics") == []
        monkeypatch.undo()
        broker.producer().send("feed", b"new")
        assert published(broker) == {"new": 1}
