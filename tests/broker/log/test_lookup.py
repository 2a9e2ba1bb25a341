"""Looking up offsets and times: against a plain model, with indexes of any kind, while segments vanish."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.broker.log import names
from taskq.broker.log.batch import encode_filler
from taskq.broker.log.files import RealFiles
from taskq.broker.log.index import TIME_ENTRY
from taskq.broker.log.partition import Partition
from taskq.broker.log.recovery import remove_segment
from taskq.errors import CorruptLog
from tests.broker.log.conftest import NOW_MS, OpenPartition
from tests.broker.log.segments import batches, fill, flip, logs
from tests.broker.log.test_partition import read_all

UNSOUND = ["missing", "empty", "garbage", "cut", "without its first entry", "low", "half an entry", "shifted"]

SERVES = {("index", "cut"), ("timeindex", "cut"), ("timeindex", "without its first entry")}
"""What is there is true, so it is used: the rest costs a longer scan."""


def earliest(times: list[int], wanted: int) -> int:
    return next((offset for offset, time in enumerate(times) if time >= wanted), len(times))


def spoil(path: Path, how: str) -> None:
    raw = path.read_bytes()
    size = 12 if path.suffix == ".timeindex" else 8
    match how:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "garbage":
            path.write_bytes(bytes(random.Random(len(raw)).randrange(256) for _ in raw))
        case "cut":
            path.write_bytes(raw[: len(raw) // size // 2 * size])
        case "without its first entry":
            path.write_bytes(raw[size:])
        case "shifted":  # all but the first entry are a little off
            changed = bytearray(raw)
            for at in range(2 * size - 1, len(raw), size):
                changed[at] ^= 1
            path.write_bytes(changed)
        case "low":
            path.write_bytes(raw[:-size] + bytes(size - 1) + b"\x01")
        case _:
            path.write_bytes(raw + b"\1\2\3")


def open_in(folder: str, segment_bytes_max: int) -> Partition:
    return Partition(
        RealFiles(), folder, "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=segment_bytes_max
    )


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.integers(-40, 60), min_size=1, max_size=300),
    value_bytes=st.integers(0, 300),
    segment_bytes_max=st.sampled_from([2000, 9000, 30_000, 1 << 30]),
    spoiled=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(UNSOUND)), max_size=6),
    data=st.data(),
)
def test_a_time_is_found_as_the_model_finds_it(steps, value_bytes, segment_bytes_max, spoiled, data):
    """Clocks that go backwards, segments of all sizes, indexes that are gone or wrong."""
    times, now = [], NOW_MS
    for step in steps:
        now += step
        times.append(now)
    with tempfile.TemporaryDirectory() as folder:
        partition = open_in(folder, segment_bytes_max)
        fill(partition, times, lambda number: b"x" * value_bytes)
        indexes = sorted(Path(folder).glob("*index"))
        for number, how in spoiled:
            path = indexes[number % len(indexes)]
            if path.exists():
                spoil(path, how)
        wanted = data.draw(st.lists(st.integers(min(times) - 2, max(times) + 2), min_size=1, max_size=10))
        for timestamp_ms in [*wanted, 0, max(times), max(times) + 1]:
            assert partition.offset_for(timestamp_ms) == earliest(times, timestamp_ms)
        partition.close()


@pytest.mark.parametrize("how", UNSOUND)
@pytest.mark.parametrize("suffix", ["index", "timeindex"])
def test_an_unsound_index_of_a_closed_segment_is_made_anew_and_kept(
    open_partition: OpenPartition, tmp_path: Path, suffix: str, how: str
) -> None:
    partition = open_partition(segment_bytes_max=60_000)
    times = [NOW_MS + number for number in range(2000)]
    fill(partition, times, lambda number: b"x" * 60)
    first = logs(tmp_path)[0]
    assert len(logs(tmp_path)) > 2
    path = first.with_suffix(f".{suffix}")
    sound = path.read_bytes()
    spoil(path, how)
    if suffix == "index":
        assert [record.offset for record in read_all(partition, 350)] == list(range(350, 2000))
    for wanted in range(NOW_MS, NOW_MS + 2000, 97):
        assert partition.offset_for(wanted) == wanted - NOW_MS
    if (suffix, how) not in SERVES:
        assert path.read_bytes() == sound


def test_only_as_much_is_read_as_the_indexes_leave_open(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition(segment_bytes_max=1 << 20)
    fill(partition, [NOW_MS + number for number in range(6000)], lambda number: b"x" * 600)
    assert len(logs(tmp_path)) == 4
    read = 0
    pread = RealFiles.pread

    def counting(fd: int, size: int, position: int, /) -> bytes:
        nonlocal read
        found = pread(fd, size, position)
        read += len(found)
        return found

    monkeypatch.setattr(RealFiles, "pread", staticmethod(counting))
    monkeypatch.setattr(partition._files, "pread", counting)
    assert partition.offset_for(NOW_MS + 5500) == 5500
    assert 0 < read < 1_500_000, "of 4 MB: the indexes, and one piece of the log"


def test_a_clock_that_was_ahead_once_does_not_hide_what_comes_after(open_partition: OpenPartition) -> None:
    partition = open_partition(segment_bytes_max=20_000)
    times = [NOW_MS + number for number in range(1000)]
    times[100] = NOW_MS + 700
    fill(partition, times)
    found = {late: partition.offset_for(NOW_MS + late) for late in (99, 100, 101, 700, 701, 999)}
    assert found == {99: 99, 100: 100, 101: 100, 700: 100, 701: 701, 999: 999}


def test_fillers_and_what_is_below_the_start_are_not_found(open_partition: OpenPartition) -> None:
    partition = open_partition(segment_bytes_max=500)
    partition.append(encode_filler(7), 7, -1)
    fill(partition, [NOW_MS + number for number in range(30)])
    assert partition.offset_for(-1) == 7
    assert partition.offset_for(NOW_MS) == 7
    retain(partition, segments=2)
    assert partition.bounds().start > 7
    assert partition.offset_for(0) == partition.bounds().start
    state = partition.head.state()
    partition.head.republish(evolve(state, start_offset=state.start_offset + 1))
    assert partition.offset_for(0) == state.start_offset + 1
    partition.head.republish(state)


def test_a_time_behind_damage_is_not_guessed(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    fill(partition, [NOW_MS + number for number in range(30)])
    log, position, *_ = batches(tmp_path)[15]
    flip(log, position + 63)
    assert partition.offset_for(NOW_MS + 3) == 3
    with pytest.raises(CorruptLog, match="CRC32C") as caught:
        partition.offset_for(NOW_MS + 29)
    assert (caught.value.file, caught.value.position) == (str(log), position)
    flip(log, position + 63)


def test_a_time_index_that_lies_about_a_true_batch_is_found_out(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=60_000)
    fill(partition, [NOW_MS + number for number in range(2000)], lambda number: b"x" * 60)
    path = logs(tmp_path)[0].with_suffix(".timeindex")
    raw = path.read_bytes()
    first_ms, _ = TIME_ENTRY.unpack_from(raw, 0)
    _, last = TIME_ENTRY.unpack_from(raw, len(raw) - 12)
    path.write_bytes(TIME_ENTRY.pack(first_ms, last))
    assert partition.offset_for(NOW_MS + 50) == 50
    assert path.read_bytes() == raw


# -- segments that vanish


def retain(partition: Partition, segments: int) -> None:
    """What retention does: move the start, then remove the oldest segments."""
    files, directory, head = partition._files, partition._directory, partition._head
    bases = [int(path.stem) for path in logs(Path(directory))]
    state = head.state()
    head.republish(evolve(state, start_offset=bases[segments]))
    for base in bases[:segments]:
        remove_segment(files, directory, base)


def test_a_reader_goes_on_at_the_new_start_when_its_next_segment_is_gone(open_partition: OpenPartition) -> None:
    partition = open_partition(segment_bytes_max=1000)
    fill(partition, [NOW_MS] * 200)
    cursor = partition.cursor(0)
    seen = [record.offset for record in cursor.read(100)]
    retain(partition, segments=4)
    start = partition.bounds().start
    while found := cursor.read(100):
        seen += [record.offset for record in found]
    first = [offset for offset in seen if offset < start]
    assert first == list(range(len(first))), "what was open is read to its end"
    assert 0 < len(first) < start
    assert seen[len(first) :] == list(range(start, 200))


def test_a_segment_that_is_removed_between_listing_and_opening_is_no_damage(
    open_partition: OpenPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition(segment_bytes_max=1000)
    fill(partition, [NOW_MS + number for number in range(200)])
    files = partition._files
    removed: list[str] = []

    def open_late(path: str, **options: bool) -> int:
        if path.endswith(".log") and not removed:
            removed.append(path)
            retain(partition, segments=3)
        return RealFiles.open(files, path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(files, "open", open_late)
    records = read_all(partition)
    assert removed
    assert [record.offset for record in records] == list(range(partition.bounds().start, 200))
    before = partition.bounds().start
    removed.clear()
    assert partition.offset_for(NOW_MS) == partition.bounds().start > before > 0


def test_a_reader_finds_its_place_in_merged_segments(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Compaction puts one segment in the place of two: the second one's name is gone."""
    partition = open_partition(segment_bytes_max=1000)
    fill(partition, [NOW_MS] * 200)
    cursor = partition.cursor(0)
    seen = [record.offset for record in cursor.read(100)]
    first, second = logs(tmp_path)[:2]
    merged = tmp_path / "merged"
    merged.write_bytes(first.read_bytes() + second.read_bytes())
    merged.rename(first)
    for path in (second, second.with_suffix(".index"), second.with_suffix(".timeindex")):
        path.unlink()
    while found := cursor.read(100):
        seen += [record.offset for record in found]
    assert seen == list(range(200))


def test_a_segment_that_is_gone_for_no_reason_is_damage(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=1000)
    fill(partition, [NOW_MS] * 200)
    second = logs(tmp_path)[1]
    raw = second.read_bytes()
    second.unlink()
    cursor = partition.cursor(0)
    while (found := cursor.read(1 << 20)) and found[-1].offset < int(second.stem) - 1:
        pass
    for _ in range(3):
        with pytest.raises(CorruptLog, match="the file ends; the log goes on"):
            cursor.read(1 << 20)
    second.write_bytes(raw)
    assert cursor.read(1 << 20)[0].offset == int(second.stem)


def test_a_rebuilt_index_does_not_outlive_its_segment(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition(segment_bytes_max=1000)
    fill(partition, [NOW_MS + number for number in range(200)])
    index = Path(names.index(str(tmp_path), 0))
    index.unlink()
    rename = RealFiles.rename

    def rename_late(old: str, new: str, /) -> None:
        rename(old, new)
        if new == str(index):
            retain(partition, segments=1)

    monkeypatch.setattr(partition._files, "rename", rename_late)
    read_all(partition, 3)
    assert not list(tmp_path.glob("00000000000000000000.*"))
