"""Guarantee 1, of power cuts: with durability "fsync" nothing acknowledged is lost, whatever the disk kept of what was
not synced. (tests/simulation does it with everything at once, by the ten thousand: `make crash`.)"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from taskq.broker.port import TopicPartition
from tests.simulation.disk import Disk
from tests.simulation.files import Fate
from tests.simulation.process import Process

FEED = TopicPartition("feed", 0)
SEGMENT_BYTES = 700  # some are rolled


@pytest.mark.parametrize("seed", range(20))
def test_what_was_published_with_fsync_survives_any_power_cut(tmp_path: Path, seed: int) -> None:
    base = tmp_path / "disk"
    base.mkdir()
    rng = Random(seed)
    disk, fate = Disk(str(base)), Fate(rng)
    writers = [Process(name, "fsync", disk, fate, SEGMENT_BYTES) for name in ("first", "second")]
    writers[0].directory.create("feed", 1)
    acknowledged = 0
    for number in range(rng.randrange(1, 30)):
        writer = rng.choice(writers)
        writer.append(FEED, [(1, None, b"%d" % number, ())])
        if rng.random() < 0.7:
            writer.sync(FEED)
            acknowledged = number + 1
    after = tmp_path / "after"
    after.mkdir()
    survivor = Process("after", "fsync", disk.power_cut(rng, str(after), Counter()), Fate(rng), SEGMENT_BYTES)
    found = [record.value for record in survivor.read(FEED)]
    assert len(found) >= acknowledged
    assert found == [b"%d" % number for number in range(len(found))]
    for process in (*writers, survivor):
        process.die()
