"""Apache Kafka's `kafka-dump-log` reads our segments and indexes, and has nothing to complain of."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.batch import encode_filler, encode_many, encode_one
from taskq.broker.log.partition import Partition
from taskq.broker.port import Message
from tests.broker.log.conftest import NOW_MS, OpenPartition, plain
from tests.broker.log.segments import append_many, fill, logs
from tests.broker.log.segments import batches as our_batches
from tests.broker.log.test_partition import read_all, reboot
from tests.kafka.dump_log import DumpLogSegments, batches
from tests.kafka.jars import Jars

COMPLAINTS = ("Mismatches in", "Found timestamp mismatch", "out of order", "isvalid: false", "rror", "xception")


@pytest.fixture(scope="session")
def dump_log(kafka_jars: Jars) -> DumpLogSegments:
    return DumpLogSegments(kafka_jars)


@pytest.fixture
def check(dump_log: DumpLogSegments, tmp_path: Path) -> Callable[[], str]:
    """Show it all files of the log; return what it printed of the records."""

    def check() -> str:
        printed = dump_log.run("--deep-iteration", "--print-data-log", files=logs(tmp_path))
        indexes = sorted([*tmp_path.glob("*.index"), *tmp_path.glob("*.timeindex")])
        assert len(indexes) == 2 * len(logs(tmp_path))
        sane = dump_log.run("--index-sanity-check", files=indexes)
        assert sane.count("passed sanity check") == len(indexes)
        verified = dump_log.run("--verify-index-only", files=indexes)
        whole = dump_log.run("--deep-iteration", files=indexes)
        for text in (printed, sane, verified, whole):
            assert not [word for word in COMPLAINTS if word in text], text[-3000:]
        found = batches(printed)
        assert [(one.base_offset, one.last_offset + 1) for one in found] == [
            (one.first, one.next_offset) for one in our_batches(tmp_path)
        ]
        assert all(one.is_valid for one in found)
        return printed

    return check


def payloads(printed: str) -> list[str]:
    return re.findall(r"^\| offset: .*? payload: (.*)$", printed, re.MULTILINE)


def gaps(printed: str) -> list[tuple[int, int]]:
    """Between which records it says that offsets are not consecutive: as after compaction, which is no complaint.

    Before the first record of a file it counts from -1 on.
    """
    found = re.findall(r"^\s*(-?\d+) is followed by (\d+)$", printed, re.MULTILINE)
    return [(int(before), int(after)) for before, after in found if before != "-1"]


def test_published_one_by_one(open_partition: OpenPartition, check: Callable[[], str]) -> None:
    fill(open_partition(), [NOW_MS + number for number in range(300)])
    printed = check()
    assert payloads(printed) == [str(number) for number in range(300)]
    assert gaps(printed) == []


def test_published_in_bulk_with_keys_and_headers(open_partition: OpenPartition, check: Callable[[], str]) -> None:
    partition = open_partition()
    messages = [Message(b"v%d" % n, b"k%d" % n, (("trace", b"t%d" % n), ("empty", b""))) for n in range(1000)]
    partition.append(encode_many(messages, NOW_MS), 1000, NOW_MS)
    partition.append(encode_one(b"\xc3\xa4" * 5000, "schlüssel".encode(), (("ünï", b"\x00"),), NOW_MS), 1, NOW_MS)
    printed = check()
    assert payloads(printed)[:1000] == [f"v{number}" for number in range(1000)]
    assert printed.count("headerKeys: [trace,empty] key: k") == 1000
    assert "headerKeys: [ünï] key: schlüssel payload: ää" in printed


def test_tombstones(open_partition: OpenPartition, check: Callable[[], str]) -> None:
    partition = open_partition()
    partition.append(encode_one(None, b"gone", (), NOW_MS), 1, NOW_MS)
    partition.append(encode_many([Message(None, b"a"), Message(b"", b"b")], NOW_MS), 2, NOW_MS)
    printed = check()
    assert re.findall(r"keySize: (\d+) valueSize: (-?\d+)", printed) == [("4", "-1"), ("1", "-1"), ("1", "0")]


def test_rolled_segments(open_partition: OpenPartition, check: Callable[[], str], tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=20_000)
    fill(partition, [NOW_MS + number for number in range(1500)])
    append_many(partition, 100, NOW_MS + 2000)
    assert len(logs(tmp_path)) > 4
    printed = check()
    assert len(payloads(printed)) == 1600
    assert gaps(printed) == []


def test_clocks_that_go_backwards(open_partition: OpenPartition, check: Callable[[], str], tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=30_000)
    clock = [0, 50, 3, 9, 9, -20, 11]
    fill(partition, [NOW_MS + number // 7 * 12 + clock[number % 7] for number in range(2000)])
    assert len(logs(tmp_path)) > 4
    assert [one.create_time_ms for one in batches(check())][:7] == [NOW_MS + step for step in clock]


def test_a_recovered_log(
    open_partition: OpenPartition, check: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_partition(segment_bytes_max=30_000), [NOW_MS + number for number in range(1000)])
    for path in tmp_path.glob("*index"):
        path.write_bytes(path.read_bytes()[:24])
    last = logs(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:-10] + bytes(500))
    reboot(monkeypatch)
    partition = open_partition(segment_bytes_max=30_000)
    fill(partition, [NOW_MS + 3000])
    assert len(read_all(partition, 3)) == 1000 - 3
    for path in logs(tmp_path)[:-1]:  # those of closed segments are made anew when they are needed
        partition.cursor(int(path.stem) + 300).read(1)
        assert partition.offset_for(NOW_MS + int(path.stem) + 250) == int(path.stem) + 250
    assert len(payloads(check())) == 1000


def test_a_filler_and_offsets_that_are_gone(open_partition: OpenPartition, check: Callable[[], str]) -> None:
    partition = open_partition()
    fill(partition, [NOW_MS] * 3)
    partition.append(encode_filler(7), 7, -1)
    fill(partition, [NOW_MS + 1] * 2)
    printed = check()
    assert [(one.base_offset, one.count) for one in batches(printed)] == [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 0),
        (10, 1),
        (11, 1),
    ]
    assert gaps(printed) == [(2, 10)]


def test_a_segment_that_begins_and_ends_with_a_filler(open_partition: OpenPartition, check: Callable[[], str]) -> None:
    partition = open_partition(segment_bytes_max=5000)
    partition.append(encode_filler(1000), 1000, -1)
    fill(partition, [NOW_MS + number for number in range(60)])
    partition.append(encode_filler(5), 5, -1)
    fill(partition, [NOW_MS + number for number in range(100)])
    assert len(payloads(check())) == 160


def test_what_the_broker_writes(dump_log: DumpLogSegments, tmp_path: Path) -> None:
    broker = EmbeddedBroker(str(tmp_path), partitions_default=3)
    producer = broker.producer()
    for number in range(50):
        producer.send("feed", b"%d" % number, b"key-%d" % number)
    producer.send_many("feed", [Message(b"x" * 700) for _ in range(2000)])
    broker.close()
    files = sorted(tmp_path.rglob("*.log"))
    printed = dump_log.run("--deep-iteration", "--print-data-log", files=files)
    assert not [word for word in COMPLAINTS if word in printed]
    assert all(one.is_valid for one in batches(printed))
    assert len(payloads(printed)) == 2050


@pytest.mark.parametrize(
    ("suffix", "byte", "said"),
    [(".log", 63, "isvalid: false"), (".index", 8 + 3, "Mismatches in"), (".timeindex", 12 + 7, "timestamp mismatch")],
)
def test_it_does_complain_of_what_is_wrong(
    open_partition: OpenPartition, check: Callable[[], str], tmp_path: Path, suffix: str, byte: int, said: str
) -> None:
    """Else all of the above would show nothing."""
    partition: Partition = open_partition()
    for number in range(300):
        partition.append(plain(b"%d" % number, NOW_MS + number), 1, NOW_MS + number)
    path = logs(tmp_path)[0].with_suffix(suffix)
    raw = path.read_bytes()
    path.write_bytes(raw[:byte] + bytes([raw[byte] ^ 1]) + raw[byte + 1 :])
    with pytest.raises(AssertionError, match=said):
        check()
    path.write_bytes(raw)
