"""Compaction on the simulated disk: power cuts at any moment, after which every key has its last durable value."""

from __future__ import annotations

from pathlib import Path
from random import Random, randrange

import pytest

from taskq.broker.log.batch import ProducerStamp, encode_many
from taskq.broker.log.idempotence import IdempotentAppender
from taskq.broker.log.partition import Partition
from taskq.broker.log.segment import OPEN
from taskq.broker.port import Message, Record
from tests.broker.log.conftest import NOW_MS, verify
from tests.broker.log.test_compaction import run
from tests.broker.log.test_partition import read_all
from tests.simulation.disk import Disk
from tests.simulation.files import Fate, PowerCut, SimFiles

HISTORIES = 40
CUTS = 4


class History:
    """One partition, one process at a time; every append is synced, and so acknowledged."""

    def __init__(self, seed: int, base: Path) -> None:
        self.rng = Random(seed)
        self.fate = Fate(self.rng)
        self.base = base
        (base / "0").mkdir(parents=True)
        self.disk = Disk(str(base / "0"))
        self.all: dict[int, Record] = {}
        self.live: dict[bytes, Record] = {}
        self.sequence = 0
        self.acknowledged: tuple[bytes, int] | None = None
        self.under_way: bytes | None = None
        self.now_ms = NOW_MS
        self.cuts = 0

    def open(self) -> tuple[SimFiles, Partition, IdempotentAppender]:
        files = SimFiles(self.disk, self.fate)
        directory = f"{self.disk.base}/p"
        files.makedirs(directory)
        files.sync_directory(self.disk.base)
        partition = Partition(files, directory, "p/0", lambda bits: None, lambda end: (), segment_bytes_max=600)
        return files, partition, IdempotentAppender(files, partition, lambda: self.now_ms)

    def go_on_until_the_power_goes(self) -> None:
        files, partition, appends = self.open()
        self.check(partition, appends)
        self.fate.cut_at = self.fate.calls + self.rng.randrange(1, 250)
        try:
            while True:
                self.now_ms += self.rng.randrange(400)
                step = self.rng.random()
                if step < 0.7:
                    self.put(partition, appends)
                elif step < 0.85:
                    partition.roll()
                else:
                    keys_max = self.rng.choice((2, 1000))
                    run(partition, self.now_ms, files, keys_max=keys_max, segment_bytes=1500)  # type: ignore[arg-type]
        except PowerCut:
            OPEN.discard(partition)  # what it remembers of this process died with it
            files.die()
        self.fate.cut_at = None
        self.cuts += 1
        base = self.base / str(self.cuts)
        base.mkdir()
        self.disk = self.disk.power_cut(self.rng, str(base), self.fate.fates)

    def put(self, partition: Partition, appends: IdempotentAppender) -> None:
        key = b"%d" % self.rng.randrange(6)
        value = None if self.rng.random() < 0.3 else self.rng.randbytes(self.rng.randrange(80))
        is_numbered = self.rng.random() < 0.3
        stamp = ProducerStamp(1, 0, self.sequence) if is_numbered else ProducerStamp(-1, -1, -1)
        batch = encode_many([Message(value, key)], self.now_ms, stamp)
        record = self.all[partition.end()] = Record(partition.end(), self.now_ms, key, value, ())
        if is_numbered:
            self.under_way = batch
            self.sequence += 1
        appends.append(batch)
        partition.sync()
        self.live[key] = record
        if is_numbered:
            self.acknowledged, self.under_way = (batch, record.offset), None

    def check(self, partition: Partition, appends: IdempotentAppender) -> None:
        found = read_all(partition)
        offsets = [record.offset for record in found]
        assert offsets == sorted(set(offsets))
        assert all(self.all[record.offset] == record for record in found)
        seen = {record.key: record for record in found}
        for key, record in self.live.items():
            newer = seen.get(key)
            # What was being appended when the power went may be there, and may have been compacted already.
            assert newer == record or (record.value is None and newer is None) or _is_newer(newer, record), (key, newer)
        verify(Path(partition.directory), partition.end())
        if self.acknowledged is not None:
            assert appends.append(self.acknowledged[0]) == self.acknowledged[1], "a retry is no second record"
        if self.under_way is not None:  # a client sends it again, as it had no answer
            offset = appends.append(self.under_way)
            partition.sync()
            self.acknowledged, self.under_way = (self.under_way, offset), None
            found = read_all(partition)
            self.all.update((record.offset, record) for record in found if record.offset == offset)
        self.live = {record.key: record for record in found if record.key is not None}


def _is_newer(found: Record | None, known: Record) -> bool:
    return found is not None and found.offset > known.offset


def one(seed: int, base: Path) -> None:
    print(f"seed {seed}")
    history = History(seed, base)
    for _ in range(CUTS):
        history.go_on_until_the_power_goes()
    files, partition, appends = history.open()
    history.check(partition, appends)
    appends.close()
    partition.close()
    files.die()


@pytest.mark.parametrize("share", range(2))
def test_after_any_power_cut_every_key_has_its_last_value(tmp_path: Path, share: int) -> None:
    first = randrange(1 << 40)
    for number in range(HISTORIES // 2):
        one(first + number, tmp_path / str(number))
