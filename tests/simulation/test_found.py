"""What the simulation found, each in its shortest form."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from taskq.broker.log.durability import SyncFailed
from taskq.broker.port import Record, TopicPartition
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


def cut(disk: Disk, tmp_path: Path, seed: int) -> list[Record]:
    """What can be read after a power cut."""
    base = tmp_path / str(seed)
    base.mkdir()
    after = Process("after", "os", disk.power_cut(Random(seed), str(base), Counter()), Fate(Random(1)), SEGMENT_BYTES)
    found = after.read(FEED)
    after.die()
    return found


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
    found = {tuple(record.value for record in cut(disk, tmp_path, seed)) for seed in range(60)}
    assert found == {(b"0",), (b"0", b"well"), (b"0", b"well", b"more")}
    second.die()
