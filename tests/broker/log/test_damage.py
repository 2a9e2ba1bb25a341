"""Reading on past damage: what can be read is, nothing else, and what is lost is told exactly."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.batch import (
    BASE_OFFSET,
    BATCH_BYTES_MAX,
    BadBatch,
    crc32c,
    encode_filler,
    encode_many,
    encode_one,
)
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.log.rewriting import Pace, Segment, batches_of
from taskq.broker.log.scan import scan
from taskq.broker.port import Lost, Message, Record, TopicPartition
from taskq.errors import CorruptLog
from tests.broker.log.conftest import NOW_MS, plain
from tests.broker.log.segments import Batch, append_many, batches, fill, flip, logs, overwrite, read_past_damage
from tests.broker.log.test_lookup import open_in
from tests.broker.log.test_partition import values


@pytest.fixture
def partition(tmp_path: Path):
    """A hundred records, in batches of ten and of one in turn, some to a segment. It is going to be damaged."""
    partition = open_in(str(tmp_path), 900)
    for _ in range(8):
        append_many(partition, 10)
        fill(partition, [NOW_MS] * 3, lambda number: b"lone-%d" % number)
    assert len(logs(tmp_path)) > 2
    yield partition
    partition.close()


def offsets(partition: Partition, start: int = 0) -> list[int]:
    return [record.offset for record in read_past_damage(partition, start)[0]]


def all_but(partition: Partition, *gone: Batch) -> list[int]:
    lost = {offset for batch in gone for offset in range(batch.first, batch.next_offset)}
    return [offset for offset in range(partition.end()) if offset not in lost]


@pytest.mark.parametrize("field", [0, 3, 7, 8, 11, 12, 16, 17, 20, 21, 23, 26, 27, 57, 60, 61, 66])
@pytest.mark.parametrize("number", [0, 1, 9, 10, 31])
def test_a_flipped_bit_costs_its_batch(partition: Partition, tmp_path: Path, number: int, field: int) -> None:
    found = batches(tmp_path)
    hit = found[number]
    flip(hit.path, hit.position + field, 0x10)
    records, lost = read_past_damage(partition)
    read = [record.offset for record in records]
    if field == 12:  # the leader epoch says nothing, and no checksum covers it
        assert (read, lost) == (list(range(partition.end())), [])
        return
    assert read == all_but(partition, hit)
    (one,) = lost
    assert (one.file, one.position, one.size_bytes) == (str(hit.path), hit.position, hit.size)
    assert (one.offset, one.next_offset) == (hit.first, hit.next_offset)
    assert one.reason


def test_two_damaged_batches_leave_the_one_between_them(partition: Partition, tmp_path: Path) -> None:
    found = batches(tmp_path)
    for hit in (found[1], found[3]):
        flip(hit.path, hit.position + 62)
    assert offsets(partition) == all_but(partition, found[1], found[3])


@pytest.mark.parametrize("start", [0, 5, 30, 60, 103])
def test_reading_may_begin_anywhere(partition: Partition, tmp_path: Path, start: int) -> None:
    found = batches(tmp_path)
    hits = [found[0], found[9], found[20]]
    for hit in hits:
        flip(hit.path, hit.position + 8, 0x40)
    assert offsets(partition, start) == [offset for offset in all_but(partition, *hits) if offset >= start]


def cut_short(paths: list[Path]) -> None:
    paths[1].write_bytes(paths[1].read_bytes()[:100])


def empty(paths: list[Path]) -> None:
    paths[1].write_bytes(b"")


def missing(paths: list[Path]) -> None:
    paths[1].unlink()


def missing_at_the_start(paths: list[Path]) -> None:
    paths[0].unlink()


def zeros(paths: list[Path]) -> None:
    paths[1].write_bytes(bytes(len(paths[1].read_bytes())))


def last_is_missing(paths: list[Path]) -> None:
    paths[-1].unlink()


@pytest.mark.parametrize("damage", [cut_short, empty, missing, missing_at_the_start, zeros, last_is_missing])
def test_files_that_are_gone_or_short_cost_what_was_in_them(
    partition: Partition, tmp_path: Path, damage: Callable[[list[Path]], None]
) -> None:
    paths, found = logs(tmp_path), batches(tmp_path)
    damage(paths)
    gone: dict[object, Path] = {missing_at_the_start: paths[0], last_is_missing: paths[-1]}
    if damage is cut_short:
        hit = [batch for batch in found if batch.path == paths[1] and batch.position + batch.size > 100]
    else:
        hit = [batch for batch in found if batch.path == gone.get(damage, paths[1])]
    records, lost = read_past_damage(partition)
    assert [record.offset for record in records] == all_but(partition, *hit)
    (one,) = lost
    assert (one.offset, one.next_offset) == (hit[0].first, hit[-1].next_offset)


def test_after_a_damaged_end_what_is_appended_later_is_read(partition: Partition, tmp_path: Path) -> None:
    last = batches(tmp_path)[-1]
    flip(last.path, last.position + 63)
    lost: list[Lost] = []
    cursor = partition.cursor(0, lost.append)
    while cursor.read(1 << 20):
        pass
    assert [one.next_offset for one in lost] == [partition.end()]
    partition.append(plain(b"later"), 1, NOW_MS)
    assert values(cursor.read(1 << 20)) == [b"later"]
    assert len(lost) == 1
    cursor.close()


def test_a_filler_is_passed_over_and_not_lost(tmp_path: Path) -> None:
    partition = open_in(str(tmp_path), 1 << 20)
    partition.append(encode_filler(5), 5, -1)
    fill(partition, [NOW_MS] * 3)
    hit = batches(tmp_path)[1]
    flip(hit.path, hit.position + 63)
    records, (one,) = read_past_damage(partition)
    assert [record.offset for record in records] == [6, 7]
    assert (one.offset, one.next_offset) == (5, 6)
    partition.close()


def test_a_batch_with_a_right_checksum_that_is_no_batch_is_lost_for_itself(tmp_path: Path) -> None:
    partition = open_in(str(tmp_path), 1 << 20)
    fill(partition, [NOW_MS] * 2)
    sound = bytearray(encode_one(b"x" * 20, None, (), NOW_MS))
    sound[53] = 0x7E  # the record's length
    sound[9:13] = crc32c(bytes(sound[13:])).to_bytes(4, "big")
    partition.append(bytes(sound), 1, NOW_MS)
    fill(partition, [NOW_MS] * 2)
    records, (one,) = read_past_damage(partition)
    assert [record.offset for record in records] == [0, 1, 3, 4]
    assert (one.offset, one.next_offset) == (2, 3)
    partition.close()


def test_bytes_of_a_batch_in_a_value_are_not_taken_for_one(tmp_path: Path) -> None:
    """Somebody publishes parts of a log, and the batch that holds them is damaged where it says how long it is."""
    partition = open_in(str(tmp_path), 1 << 20)
    forged = BASE_OFFSET.pack(2) + encode_one(b"forged", None, (), NOW_MS)
    partition.append(plain(b"first"), 1, NOW_MS)
    message = Message(b"...." + forged + b"....")
    partition.append(encode_many([message, message], NOW_MS), 2, NOW_MS)
    fill(partition, [NOW_MS] * 2)
    hit = batches(tmp_path)[1]
    flip(hit.path, hit.position + 9)
    records, (one,) = read_past_damage(partition)
    assert values(records) == [b"first", b"0", b"1"]
    assert (one.offset, one.next_offset) == (1, 3)
    partition.close()


@pytest.mark.parametrize("field", [8, 26, 57])
def test_a_damaged_header_of_a_batch_larger_than_what_is_read_at_once_is_reported(tmp_path: Path, field: int) -> None:
    """Whatever it says of its size: no more is read, or made room for, than there is."""
    partition = open_in(str(tmp_path), 1 << 20)
    partition.append(plain(b"x" * 100_000), 1, NOW_MS)
    fill(partition, [NOW_MS])
    flip(logs(tmp_path)[0], field, 0x7F)
    for _ in range(2):
        with pytest.raises(CorruptLog) as caught:
            partition.cursor(0).read(1 << 20)
        assert caught.value.position == 0
    assert offsets(partition) == [1]
    partition.close()


def numbered(directory: Path, count: int) -> Partition:
    """Batches of `count` records, whose values say their offsets; long enough for a few index entries."""
    partition = open_in(str(directory), 8000)
    for number in range(40):
        texts = [b"%d" % offset for offset in range(number * count, (number + 1) * count)]
        batch = encode_many([Message(text.ljust(300 // count)) for text in texts], NOW_MS + number)
        partition.append(batch, count, NOW_MS + number)
    return partition


def read_strictly(partition: Partition, offset: int) -> list[Record]:
    cursor, records = partition.cursor(offset), list[Record]()
    with suppress(CorruptLog):
        while found := cursor.read(2000):
            records += found
    cursor.close()
    return records


@pytest.mark.parametrize("bit", [1, 2, 8, 16, 64])
@pytest.mark.parametrize("count", [1, 10])
def test_a_batch_whose_base_offset_is_off_is_never_served_wherever_reading_begins(
    tmp_path: Path, count: int, bit: int
) -> None:
    """No checksum covers it."""
    partition = numbered(tmp_path, count)
    for hit in batches(tmp_path)[::7]:
        flip(hit.path, hit.position + 7, bit)
        for offset in range(max(0, hit.first - 2 * count), min(partition.end(), hit.next_offset + count)):
            sound = [one for one in range(offset, partition.end()) if not hit.first <= one < hit.next_offset]
            past, lost = read_past_damage(partition, offset)
            assert [record.offset for record in past] == sound
            assert all(hit.first <= one.offset < (one.next_offset or 0) <= hit.next_offset for one in lost)
            strictly = read_strictly(partition, offset)
            assert [record.offset for record in strictly] == sound[: len(strictly)]
            assert all(int(record.value or b"") == record.offset for record in [*past, *strictly])
        flip(hit.path, hit.position + 7, bit)
    partition.close()


@pytest.mark.parametrize("bit", [1, 2, 8, 16, 64])
def test_no_time_is_looked_up_in_a_batch_whose_base_offset_is_off(tmp_path: Path, bit: int) -> None:
    partition = numbered(tmp_path, 10)
    for number, hit in enumerate(batches(tmp_path)):
        flip(hit.path, hit.position + 7, bit)
        for path in tmp_path.glob("*index"):
            if number % 2:
                path.unlink()
        with suppress(CorruptLog):
            assert partition.offset_for(NOW_MS + number) == hit.first
        flip(hit.path, hit.position + 7, bit)
    partition.close()


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_length_that_is_damaged_has_nobody_read_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    partition = open_in(str(tmp_path), 1 << 30)
    fill(partition, [NOW_MS] * 4, lambda number: bytes(5000))
    hit = batches(tmp_path)[1]
    overwrite(hit.path, hit.position + 8, (150 * 1024 * 1024).to_bytes(4, "big"))
    os.truncate(hit.path, 200 * 1024 * 1024)  # as if there were more
    sizes, pread = list[int](), RealFiles.pread

    def noting(fd: int, size: int, position: int, /) -> bytes:
        sizes.append(size)
        return pread(fd, size, position)

    monkeypatch.setattr(RealFiles, "pread", staticmethod(noting))
    assert [record.offset for record in read_strictly(partition, start)] == ([0], [], [], [3])[start]
    assert offsets(partition, start) == [offset for offset in (0, 2, 3) if offset >= start]
    with open(hit.path, "rb") as log:
        assert scan(RealFiles(), log.fileno(), 0, 0, lambda position, header: None).position == hit.position
    segment = Segment(0, 4, os.path.getsize(hit.path))
    with pytest.raises(BadBatch):
        list(batches_of(RealFiles(), str(tmp_path), segment, Pace(lambda seconds: False)))
    assert max(sizes) <= BATCH_BYTES_MAX
    partition.close()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), hits=st.integers(1, 12), segment_bytes_max=st.sampled_from([600, 3000, 1 << 30]))
def test_whatever_is_overwritten_nothing_is_served_that_was_not_written(
    seed: int, hits: int, segment_bytes_max: int
) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        partition = open_in(folder, segment_bytes_max)
        written: list[bytes] = []
        for _ in range(rng.randrange(5, 40)):
            texts = [b"%d-" % (len(written) + n) + b"x" * rng.randrange(30) for n in range(rng.choice((1, 1, 5)))]
            partition.append(encode_many([Message(text) for text in texts], NOW_MS), len(texts), NOW_MS)
            written += texts
        paths = logs(Path(folder))
        for _ in range(hits):
            path = rng.choice(paths)
            size = path.stat().st_size
            if not size:  # an earlier hit has left nothing of it
                continue
            what = rng.choice((b"\0", b"\xff", b"\2", rng.randbytes(4), bytes(100), rng.randbytes(100)))
            overwrite(path, rng.randrange(size), what)
            if rng.random() < 0.2:
                path.write_bytes(path.read_bytes()[: rng.randrange(size)])
        records, lost = read_past_damage(partition, rng.randrange(len(written)) if rng.random() < 0.5 else 0)
        assert all(record.value == written[record.offset] for record in records)
        read = [record.offset for record in records]
        assert read == sorted(set(read))
        for one in lost:
            assert one.next_offset is not None
            assert not set(read) & set(range(one.offset, one.next_offset))
        told = {offset for one in lost for offset in range(one.offset, one.next_offset or 0)}
        assert {*read, *told} >= set(range(min([*read, *told]), len(written))), "what is not read is told"
        partition.close()


def test_a_reader_of_the_broker_passes_over_damage_when_told_to(tmp_path: Path) -> None:
    broker = EmbeddedBroker(str(tmp_path), partitions_default=1)
    for number in range(10):
        broker.producer().send("feed", b"%d" % number)
    tp = TopicPartition("feed", 0)
    hit = batches(tmp_path / "topics" / "feed" / "0")[4]
    flip(hit.path, hit.position + 62)
    lost: list[Lost] = []
    reader, seen = broker.reader(), list[int]()
    while records := reader.read(tp, seen[-1] + 1 if seen else 0, lost=lost.append):
        seen += [record.offset for record in records]
    assert seen == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [(one.offset, one.next_offset) for one in lost] == [(4, 5)]
    with pytest.raises(CorruptLog):
        reader.read(tp, 4)
    broker.close()
