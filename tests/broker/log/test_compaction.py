"""Compaction against a dict, and cut short at every file operation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskq.broker.log.batch import ProducerStamp, encode_filler, encode_many, read_header
from taskq.broker.log.compaction import CompactionReport, CompactionSettings, compact
from taskq.broker.log.files import RealFiles
from taskq.broker.log.idempotence import IdempotentAppender
from taskq.broker.log.partition import Partition
from taskq.broker.log.recovery import segment_bases
from taskq.broker.port import Message, Record
from taskq.errors import TopicNotFound
from tests.broker.log.conftest import NOW_MS, OpenPartition, verify
from tests.broker.log.test_partition import read_all

FILES = RealFiles()
EAGER = CompactionSettings(segment_bytes=1 << 20, delete_retention_ms=1000, min_cleanable_dirty_ratio=0.0)
SEGMENT_BYTES = 500


def put(partition: Partition, *pairs: tuple[bytes | None, bytes | None], timestamp_ms: int = NOW_MS) -> None:
    """Append one batch."""
    batch = encode_many([Message(value, key) for key, value in pairs], timestamp_ms)
    partition.append(batch, len(pairs), timestamp_ms)


def run(partition: Partition, now_ms: int = NOW_MS, files: RealFiles = FILES, **changes: float) -> CompactionReport:
    chosen = {"segment_bytes": 1 << 20, "delete_retention_ms": 1000, "min_cleanable_dirty_ratio": 0.0, **changes}
    return compact(files, partition, CompactionSettings(**chosen), now_ms)  # type: ignore[arg-type]


def last_of(records: list[Record]) -> dict[bytes | None, Record]:
    return {record.key: record for record in records}


def bases(directory: Path) -> list[int]:
    return segment_bases(FILES, str(directory))


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "head"}


def churn(partition: Partition, rounds: int = 12, keys: int = 5) -> None:
    for number in range(rounds):
        put(partition, *((b"k%d" % key, b"%d-%d" % (number, key) * 10) for key in range(keys)))
    partition.roll()


def test_of_every_key_the_last_record_stays_as_it_was(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=SEGMENT_BYTES)
    churn(partition)
    before = read_all(partition)
    assert len(bases(tmp_path)) > 5
    report = run(partition)
    after = read_all(partition)
    assert after == [record for record in before if last_of(before)[record.key] == record]
    assert (report.cleaned, report.records_removed) == (60, 55)
    assert report.bytes_after < report.bytes_before / 5
    assert bases(tmp_path) == [0, 60], "what is small is joined"
    assert partition.end() == 60
    assert [record.offset for record in read_all(partition, 57)] == [57, 58, 59]


def test_who_reads_on_while_all_that_was_there_is_compacted_goes_on_to_what_is_newer(
    open_partition: OpenPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition(segment_bytes_max=SEGMENT_BYTES)
    put(partition, (b"key", b"old"))
    partition.roll()
    put(partition, (b"other", b"newer"), (b"key", b"newest"))
    partition.roll()
    assert run(partition).has_worked
    cursor = partition.cursor(0)
    ends = iter([1])  # as it was when it looked, just before the rest was written
    now = cursor._head.next_offset
    monkeypatch.setattr(type(cursor._head), "next_offset", lambda head: next(ends, None) or now())
    assert [record.value for record in cursor.read(1 << 20)] == [b"newer", b"newest"]


def test_the_active_segment_is_left_alone(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=1 << 20)
    put(partition, (b"k", b"1"), (b"k", b"2"))
    assert not run(partition).has_worked
    assert len(read_all(partition)) == 2
    partition.roll()
    put(partition, (b"k", b"3"))
    run(partition)
    assert [record.value for record in read_all(partition)] == [b"2", b"3"], "what is not read is not known"


def test_a_tombstone_stays_for_a_while_and_goes_with_all_before_it(
    open_partition: OpenPartition, tmp_path: Path
) -> None:
    partition = open_partition()
    put(partition, (b"gone", b"1"), (b"kept", b"1"))
    partition.roll()
    put(partition, (b"gone", None), timestamp_ms=NOW_MS + 500)
    put(partition, (b"back", None), (b"back", b"2"), timestamp_ms=NOW_MS + 500)
    partition.roll()
    run(partition, NOW_MS + 1499)
    assert [record[2:4] for record in read_all(partition)] == [(b"kept", b"1"), (b"gone", None), (b"back", b"2")]
    assert not run(partition, NOW_MS + 1499).has_worked
    assert run(partition, NOW_MS + 1500, min_cleanable_dirty_ratio=0.5).has_worked, "it is due, nothing is dirty"
    assert [record[2:4] for record in read_all(partition)] == [(b"kept", b"1"), (b"back", b"2")]
    assert not run(partition, NOW_MS + 9999).has_worked


def test_records_without_a_key_stay(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    put(partition, (None, b"1"), (None, b"2"), (b"", b"3"), (b"", b"4"), (None, None))
    partition.roll()
    run(partition, NOW_MS + 9999)
    assert [record[2:4] for record in read_all(partition)] == [(None, b"1"), (None, b"2"), (b"", b"4"), (None, None)]


def test_it_works_only_when_it_pays(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition()
    put(partition, *((b"%d" % key, b"x" * 100) for key in range(10)))
    partition.roll()
    assert run(partition, min_cleanable_dirty_ratio=0.5).has_worked
    put(partition, *((b"%d" % key, b"x" * 100) for key in range(4)))
    partition.roll()
    assert not run(partition, min_cleanable_dirty_ratio=0.5).has_worked
    put(partition, *((b"%d" % key, b"x" * 100) for key in range(8)))
    partition.roll()
    assert run(partition, min_cleanable_dirty_ratio=0.5).records_removed == 12


def test_joined_segments_are_no_larger_than_a_segment_may_be(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=SEGMENT_BYTES)
    for number in range(40):
        put(partition, (b"%d" % number, b"x" * 50))
    partition.roll()
    report = run(partition, segment_bytes=2000)
    sizes = [(tmp_path / f"{base:020}.log").stat().st_size for base in bases(tmp_path)]
    assert report.segments_joined > 3
    assert max(sizes) <= 2000
    assert all(one + other > 2000 for one, other in pairwise(sizes[:-1]))


def test_batches_of_idempotent_producers_are_not_widened(open_partition: OpenPartition, tmp_path: Path) -> None:
    """How many records a batch had is told by its offsets: a wider one would seem to be another batch."""
    partition = open_partition()
    appends = IdempotentAppender(FILES, partition, lambda: NOW_MS)
    sent = [
        encode_many([Message(b"%d" % number, b"k%d" % (number // 3))], NOW_MS, ProducerStamp(4, 0, number))
        for number in range(9)
    ]
    for batch in sent:
        appends.append(batch)
    partition.roll()
    put(partition, (b"k1", b"new"))
    partition.roll()
    run(partition)
    assert [record.offset for record in read_all(partition)] == [2, 8, 9]
    raw = (tmp_path / f"{0:020}.log").read_bytes()
    position = 0
    while position < len(raw):
        header = read_header(raw, position)
        assert header.producer_id < 0 or header.last_offset_delta == 0
        position += header.size
    again = IdempotentAppender(FILES, open_partition(), lambda: NOW_MS)
    assert [again.append(batch) for batch in sent[4:]] == [4, 5, 6, 7, 8], "what is gone was sent all the same"
    assert appends.append(sent[8]) == 8
    assert partition.end() == 10
    again.close()
    appends.close()


@pytest.mark.parametrize("where", [0, 2])
def test_at_damage_it_stops(open_partition: OpenPartition, tmp_path: Path, where: int) -> None:
    partition = open_partition(segment_bytes_max=SEGMENT_BYTES)
    churn(partition)
    path = tmp_path / f"{bases(tmp_path)[where]:020}.log"
    sound = path.read_bytes()
    path.write_bytes(sound[:70] + bytes([sound[70] ^ 4]) + sound[71:])
    damaged = path.read_bytes()
    files = snapshot(tmp_path)
    report = run(partition)
    assert path.name in report.damage
    assert "CRC32C" in report.damage
    assert path.read_bytes() == damaged
    after = snapshot(tmp_path)
    assert all(after[name] == files[name] for name in files if name.endswith(".log") and name >= path.name)
    again = run(partition)
    assert again.damage == report.damage
    assert not again.has_worked, "nor is it read again and again"
    path.write_bytes(sound)  # somebody repairs it
    assert run(partition).damage == ""
    assert [record.value for record in read_all(partition)] == [b"11-%d" % key * 10 for key in range(5)]


def test_damage_in_what_was_clean_holds_tombstones_back(open_partition: OpenPartition, tmp_path: Path) -> None:
    """The value that a tombstone removes may be in what can't be read now, and can be again later."""
    partition = open_partition()
    put(partition, (b"k", b"value"), (b"other", b"value"))
    partition.roll()
    assert run(partition).cleaned == 2
    path = tmp_path / f"{0:020}.log"
    sound = path.read_bytes()
    put(partition, (b"k", None))
    partition.roll()
    path.write_bytes(sound[:70] + bytes([sound[70] ^ 4]) + sound[71:])
    assert "byte 0" in run(partition, NOW_MS + 1000).damage
    path.write_bytes(sound)
    assert [record[2:4] for record in read_all(partition)] == [(b"k", b"value"), (b"other", b"value"), (b"k", None)]
    assert run(partition, NOW_MS + 1000).damage == ""
    assert [record[2:4] for record in read_all(partition)] == [(b"other", b"value")]


def test_a_tombstone_past_what_the_map_covers_stays(open_partition: OpenPartition) -> None:
    partition = open_partition()
    put(partition, (b"a", b"1"), (b"b", b"1"))
    put(partition, (b"a", None))
    partition.roll()
    assert run(partition, NOW_MS + 1000, keys_max=2).cleaned == 2
    assert [record[2:4] for record in read_all(partition)] == [(b"a", b"1"), (b"b", b"1"), (b"a", None)]
    run(partition, NOW_MS + 1000, keys_max=2)
    assert [record[2:4] for record in read_all(partition)] == [(b"b", b"1")]


def test_a_small_map_takes_several_passes(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=SEGMENT_BYTES)
    churn(partition, rounds=6, keys=30)
    cleaned = [run(partition, keys_max=20).cleaned for _ in range(8)]
    assert cleaned == [30, 60, 90, 120, 150, 180, 180, 180]
    assert len(read_all(partition)) == 30


def test_a_deleted_topic_is_left_alone(open_partition: OpenPartition, tmp_path: Path) -> None:
    """Another topic of the same name may have the same paths by now."""
    from taskq.broker.log.head import Notice

    partition = open_partition(segment_bytes_max=SEGMENT_BYTES)
    churn(partition)
    before = snapshot(tmp_path)

    class Deletes(RealFiles):
        def sync_directory(self, path: str) -> None:
            with partition.locked():
                partition.head.notify(Notice.DELETED)

    with pytest.raises(TopicNotFound):
        run(partition, files=Deletes())
    after = snapshot(tmp_path)
    assert {name: raw for name, raw in after.items() if name.endswith(".log")} == {
        name: raw for name, raw in before.items() if name.endswith(".log")
    }
    partition.head.words[6] = 0


# -- against a dict

pairs = st.tuples(
    st.one_of(st.none(), st.integers(0, 8).map(lambda number: b"%d" % number)),
    st.one_of(st.none(), st.binary(max_size=60)),
)
steps = st.one_of(
    st.tuples(st.just("put"), st.lists(pairs, min_size=1, max_size=6)),
    st.tuples(st.just("put"), st.lists(pairs, min_size=1, max_size=6)),
    st.tuples(st.just("roll"), st.none()),
    st.tuples(st.just("filler"), st.integers(1, 5)),
    st.tuples(st.just("compact"), st.tuples(st.sampled_from([0, 1500]), st.sampled_from([2, 5, 1000]))),
    st.tuples(st.just("reopen"), st.none()),
    st.tuples(st.just("wait"), st.integers(1, 1200)),
)


class Model:
    """A partition, and what was put into it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.partition = self.open()
        self.all: dict[int, Record] = {}
        self.live: dict[bytes | None, Record] = {}
        self.now_ms = NOW_MS

    def open(self) -> Partition:
        return Partition(
            FILES, str(self.directory), "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=SEGMENT_BYTES
        )

    def put(self, given_pairs: list[tuple[bytes | None, bytes | None]]) -> None:
        first = self.partition.end()
        put(self.partition, *given_pairs, timestamp_ms=self.now_ms)
        for offset, (key, value) in enumerate(given_pairs, first):
            record = self.all[offset] = Record(offset, self.now_ms, key, value, ())
            self.live[key or b"no key %d" % offset] = record

    def roll(self, _: object) -> None:
        self.partition.roll()

    def filler(self, count: int) -> None:
        self.partition.append(encode_filler(count), count, -1)

    def compact(self, how: tuple[int, int]) -> None:
        later_ms, keys_max = how
        run(self.partition, self.now_ms + later_ms, keys_max=keys_max, segment_bytes=1500)

    def reopen(self, _: object) -> None:
        self.partition.close()
        self.partition = self.open()

    def wait(self, ms: int) -> None:
        self.now_ms += ms

    def check(self) -> list[Record]:
        found = read_all(self.partition)
        offsets = [record.offset for record in found]
        assert offsets == sorted(set(offsets))
        assert all(self.all[record.offset] == record for record in found), "what is there is what was put"
        seen: dict[bytes | None, Record] = {record.key or b"no key %d" % record.offset: record for record in found}
        for key, record in self.live.items():  # a tombstone that is gone never shows what was before it
            assert seen.get(key) == record or (record.value is None and key not in seen)
        return found


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(steps, max_size=40))
@example([("put", [(b"1", b"a")]), ("roll", None), ("put", [(b"1", None)]), ("roll", None), ("compact", (1500, 1000))])
def test_reading_finds_what_a_dict_would(tmp_path_factory: pytest.TempPathFactory, taken: list) -> None:
    model = Model(tmp_path_factory.mktemp("partition"))
    for step, argument in taken:
        getattr(model, step)(argument)
        model.check()
    model.roll(None)
    for _ in range(60):
        if not run(model.partition, model.now_ms + 1500, segment_bytes=1500).has_worked:
            break
    found = model.check()
    assert found == sorted(record for record in model.live.values() if record.value is not None or record.key is None)
    files = snapshot(model.directory)
    (model.directory / "compacted").unlink(missing_ok=True)
    run(model.partition, model.now_ms + 1500, segment_bytes=1500)
    assert snapshot(model.directory) == files, "twice is as good as once"
    verify(model.directory, model.partition.end())
    model.partition.close()
