"""What the simulation found, each in its shortest form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from taskq.broker.log.durability import SyncFailed
from taskq.broker.port import Committed, TopicPartition
from tests.simulation.disk import Disk
from tests.simulation.files import Fate, Killed
from tests.simulation.model import Plain
from tests.simulation.process import Process

FEED = TopicPartition("feed", 0)
SEGMENT_BYTES = 1 << 20


def plain(value: bytes) -> list[Plain]:
    return [(1, None, value, ())]


def open_disk(tmp_path: Path) -> tuple[Disk, Fate]:
    base = tmp_path / "disk"
    base.mkdir()
    return Disk(str(base)), Fate(Random(5))  # the call that it is killed in does all it should


@contextmanager
def cut(disk: Disk, tmp_path: Path, seed: int) -> Iterator[Process]:
    """One that comes after a power cut."""
    base = tmp_path / str(seed)
    base.mkdir()
    after = Process("after", "os", disk.power_cut(Random(seed), str(base), Counter()), Fate(Random(1)), SEGMENT_BYTES)
    yield after
    after.die()


def left(disk: Disk, tmp_path: Path, seed: int) -> tuple[bytes | None, ...]:
    """What can be read after a power cut."""
    with cut(disk, tmp_path, seed) as after:
        return tuple(record.value for record in after.read(FEED))


def test_who_appended_before_a_repair_is_told_that_it_may_be_lost(tmp_path: Path) -> None:
    disk, fate = open_disk(tmp_path)
    first, second, third = (Process(name, "os", disk, fate, SEGMENT_BYTES) for name in ("first", "second", "third"))
    first.directory.create("feed", 1)
    first.append(FEED, plain(b"first"))
    second.append(FEED, plain(b"second"))
    second.files.fail_sync_in = 1
    with pytest.raises(SyncFailed):
        second.sync(FEED)
    third.append(FEED, plain(b"third"))  # opens the partition, which repairs it
    assert first.partition(FEED).needs_sync, "though all below the end is synced now"
    with pytest.raises(SyncFailed, match="repaired"):
        first.sync(FEED)
    third.sync(FEED)
    for process in (first, second, third):
        process.die()


def test_a_killed_append_does_not_come_back_in_the_place_of_another(tmp_path: Path) -> None:
    disk, fate = open_disk(tmp_path)
    first, second = (Process(name, "os", disk, fate, SEGMENT_BYTES) for name in ("first", "second"))
    first.directory.create("feed", 1)
    first.append(FEED, plain(b"0"))
    first.sync(FEED)
    first.files.kill_in = 1
    with pytest.raises(Killed):
        first.append(FEED, plain(b"dead"))
    first.die()
    second.append(FEED, plain(b"well"))
    second.append(FEED, plain(b"more"))
    found = {left(disk, tmp_path, seed) for seed in range(60)}
    assert found == {(b"0",), (b"0", b"well"), (b"0", b"well", b"more")}
    second.die()


def test_progress_in_a_deleted_topic_does_not_come_back_to_the_one_that_was_made_anew(tmp_path: Path) -> None:
    disk, fate = open_disk(tmp_path)
    process = Process("one", "fsync", disk, fate, SEGMENT_BYTES)
    process.directory.create("feed", 1)
    process.append(FEED, plain(b"old"))
    process.take("mail", FEED)
    process.commit("mail", FEED, Committed(1))
    process.take("search", FEED)  # which syncs nothing of the other group
    process.release()
    process.directory.catalogue.delete("feed")
    process.directory.create("feed", 1)
    process.append(FEED, plain(b"new"))
    process.sync(FEED)
    for seed in range(60):
        with cut(disk, tmp_path, seed) as after:
            assert [record.value for record in after.read(FEED)] == [b"new"]
            assert after.committed("mail", FEED) is None
    process.die()


def test_a_topic_that_comes_back_since_its_deleter_died_has_its_progress_yet(tmp_path: Path) -> None:
    disk, fate = open_disk(tmp_path)
    first, second = (Process(name, "fsync", disk, fate, SEGMENT_BYTES) for name in ("first", "second"))
    first.directory.create("feed", 1)
    first.append(FEED, plain(b"old"))
    first.sync(FEED)
    first.take("mail", FEED)
    first.commit("mail", FEED, Committed(1))
    first.release()
    first.take("mail", FEED)  # which writes the commit again, and syncs it
    first.files.kill_in = 1
    with pytest.raises(Killed):
        first.directory.catalogue.delete("feed")
    first.die()
    second.files.kill_in = 3
    with pytest.raises(Killed):
        second.directory.catalogue.finish()
    found = set()
    for seed in range(60):
        with cut(disk, tmp_path, seed) as after:
            if after.directory.topics():
                found.add((after.read(FEED)[0].value, after.committed("mail", FEED)))
    assert found <= {(b"old", Committed(1))}
    second.die()


def test_what_is_left_of_a_deleted_topic_is_never_taken_for_one_that_lost_its_file(tmp_path: Path) -> None:
    disk, fate = open_disk(tmp_path)
    first, second = (Process(name, "fsync", disk, fate, SEGMENT_BYTES) for name in ("first", "second"))
    first.directory.create("feed", 1)
    first.files.kill_in = 3  # just after the directory has got another name
    with pytest.raises(Killed):
        first.directory.catalogue.delete("feed")
    first.die()
    second.files.kill_in = 6
    with pytest.raises(Killed):
        second.directory.create("feed", 1)
    for seed in range(60):
        with cut(disk, tmp_path, seed) as after:
            after.directory.create("feed", 1, exist_ok=True)
    second.die()
