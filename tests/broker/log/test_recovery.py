"""Recovery after a reboot: where it begins, what it cuts and keeps, what it says. Power cuts: tests/simulation."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import checkpoint
from taskq.broker.log.files import RealFiles
from taskq.broker.log.index import IndexBuilder, is_index_sound, is_time_index_sound
from taskq.broker.log.scan import scan
from taskq.broker.port import Committed, Message, TopicPartition
from taskq.errors import CorruptLog
from tests.broker.log.conftest import NOW_MS, OpenPartition, plain
from tests.broker.log.test_partition import read_all, reboot


def fill(partition: Any, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        partition.append(plain(b"%d" % number), 1, NOW_MS + number)


def last_report(directory: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((directory / "recovery.json").read_text())[-1]
    return report


def only_log(directory: Path) -> Path:
    (log,) = directory.glob("*.log")
    return log


def test_a_clean_close_leaves_nothing_to_scan(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition()
    fill(partition, 1000)
    partition.close()
    reboot(monkeypatch)
    reopened = open_partition()
    assert reopened.end() == 1000
    report = last_report(tmp_path)
    assert report["scanned_bytes"] == report["cut_bytes"] == 0
    assert report["reason"] == ""


def test_only_what_is_past_the_checkpoint_is_scanned(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition()
    fill(partition, 1000)
    partition.close()
    scanned = only_log(tmp_path).stat().st_size
    again = open_partition()
    fill(again, 7, first=1000)
    reboot(monkeypatch)
    reopened = open_partition()
    assert last_report(tmp_path)["scanned_bytes"] == only_log(tmp_path).stat().st_size - scanned
    assert [record.offset for record in read_all(reopened)] == list(range(1007))


@pytest.mark.parametrize("damage", ["missing", "garbage", "another crc"])
def test_a_checkpoint_that_is_no_good_costs_a_longer_scan(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    partition = open_partition()
    fill(partition, 500)
    partition.close()
    path = tmp_path / "checkpoint"
    match damage:
        case "missing":
            path.unlink()
        case "garbage":
            path.write_bytes(b"\0\xff{" * 50)
        case _:
            changed = path.read_text().replace('\\"next_offset\\": 500', '\\"next_offset\\": 900')
            assert changed != path.read_text()
            path.write_text(changed)
    reboot(monkeypatch)
    reopened = open_partition()
    assert reopened.end() == 500
    assert [record.offset for record in read_all(reopened, 123)] == list(range(123, 500))


def test_sound_batches_that_are_cut_are_set_aside(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(open_partition(), 10)
    log = only_log(tmp_path)
    raw = bytearray(log.read_bytes())
    size = len(raw) // 10
    raw[6 * size + 62] ^= 0xFF
    log.write_bytes(raw)
    reboot(monkeypatch)
    with caplog.at_level(logging.WARNING, "taskq.log"):
        assert open_partition().end() == 6
    (aside,) = tmp_path.glob("*.aside")
    assert aside.read_bytes() == raw[6 * size :]
    report = last_report(tmp_path)
    assert report["set_aside"] == [str(aside)]
    assert report["cut_bytes"] == 4 * size
    assert "CRC32C" in report["reason"]
    assert f"cut {4 * size} bytes" in caplog.text


def test_a_torn_tail_is_cut_and_not_kept(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_partition(), 10)
    log = only_log(tmp_path)
    raw = log.read_bytes()
    log.write_bytes(raw[:-5] + bytes(4096))
    reboot(monkeypatch)
    assert open_partition().end() == 9
    assert not list(tmp_path.glob("*.aside"))
    assert last_report(tmp_path)["cut_bytes"] > 4096


@pytest.mark.parametrize("lost", ["half", "all", "the file"])
def test_offsets_that_had_been_synced_are_never_given_out_again(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    partition = open_partition()
    fill(partition, 100)
    partition.close()
    log = only_log(tmp_path)
    raw = log.read_bytes()
    if lost == "the file":
        log.unlink()
    else:
        log.write_bytes(raw[: len(raw) // 2] if lost == "half" else b"")
    reboot(monkeypatch)
    reopened = open_partition()
    assert reopened.append(plain(b"new"), 1, NOW_MS) == 100
    missing = last_report(tmp_path)["missing"]
    assert missing == [{"half": 50, "all": 0, "the file": 0}[lost], 100]
    if lost == "the file":
        assert [record.offset for record in read_all(reopened)] == [100]
    else:
        with pytest.raises(CorruptLog):
            read_all(reopened)
        assert [record.offset for record in read_all(reopened, 100)] == [100]
    log.write_bytes(raw)  # for the check after the test


def test_indexes_made_by_appending_and_by_recovery_are_the_same(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition()
    clock = [0, 5, 3, 9, 9, 2, 11]  # publishers' clocks differ a little
    for number in range(3000):
        at_ms = NOW_MS + number // 7 * 12 + clock[number % 7]
        partition.append(plain(b"%d" % number, at_ms), 1, at_ms)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*index")}
    assert is_index_sound(before["00000000000000000000.index"], 1 << 31)
    assert is_time_index_sound(before["00000000000000000000.timeindex"])
    assert len(before["00000000000000000000.timeindex"]) == len(before["00000000000000000000.index"]) // 8 * 12
    reboot(monkeypatch)
    open_partition()
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*index")}


def test_what_is_appended_after_a_checkpoint_is_indexed_by_recovery(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition()
    for number in range(1500):
        partition.append(plain(b"%d" % number, NOW_MS + number), 1, NOW_MS + number)
    partition.close()
    again = open_partition()
    for number in range(1500, 3000):
        again.append(plain(b"%d" % number, NOW_MS + number), 1, NOW_MS + number)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*index")}
    for path in tmp_path.glob("*index"):
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) * 2 // 3] + b"\xff" * 11)
    reboot(monkeypatch)
    open_partition()
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*index")}
    builder = IndexBuilder(0)
    with only_log(tmp_path).open("rb") as log:
        scan(RealFiles(), log.fileno(), 0, 0, builder.add)
    assert builder.index == before["00000000000000000000.index"]
    assert builder.time_index == before["00000000000000000000.timeindex"]


def test_a_segment_that_was_begun_and_not_written_to_is_gone_on_with(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = open_partition(segment_bytes_max=700)
    fill(partition, 9)
    bases = sorted(int(path.stem) for path in tmp_path.glob("*.log"))
    (tmp_path / f"{bases[-1]:020}.log").write_bytes(b"")
    reboot(monkeypatch)
    reopened = open_partition(segment_bytes_max=700)
    assert reopened.end() == bases[-1]
    fill(reopened, 3, first=reopened.end())
    assert [record.offset for record in read_all(reopened)] == list(range(bases[-1] + 3))


def test_the_last_reports_are_kept(
    open_partition: OpenPartition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_partition(), 3)
    for boot in range(15):
        monkeypatch.setattr(RealFiles, "boot_id", lambda self, boot=boot: (9, boot))
        open_partition()
    assert len(json.loads((tmp_path / "recovery.json").read_text())) == 10


def test_clamped_commits_are_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tp = TopicPartition("feed", 0)
    broker = EmbeddedBroker(str(tmp_path), partitions_default=1)
    broker.producer().send_many("feed", [Message(b"x") for _ in range(10)])
    consumer = broker.consumer("group", ["feed"])
    consumer.poll(5)
    consumer.commit({tp: Committed(8, b"and some above")})
    broker.close()
    directory = tmp_path / "topics" / "feed" / "0"
    (directory / "checkpoint").unlink()
    only_log(directory).write_bytes(b"")
    monkeypatch.setattr(RealFiles, "boot_id", lambda self: (8, 8))
    again = EmbeddedBroker(str(tmp_path))
    assert again.reader().bounds(tp).end == 0
    (said,) = last_report(directory)["committed"]
    assert "group group had committed more than there is: its offset 8 goes back to 0" in said
    assert again.consumer("group", ["feed"]).poll(5).assigned == {tp: Committed(0)}
    again.close()


def test_what_had_finished_out_of_order_survives_a_reboot_that_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tp = TopicPartition("feed", 0)
    broker = EmbeddedBroker(str(tmp_path), partitions_default=1)
    broker.producer().send_many("feed", [Message(b"x") for _ in range(10)])
    consumer = broker.consumer("group", ["feed"])
    consumer.poll(5)
    consumer.commit({tp: Committed(3, b"and some above")})
    broker.close()
    monkeypatch.setattr(RealFiles, "boot_id", lambda self: (8, 8))
    again = EmbeddedBroker(str(tmp_path))
    assert again.consumer("group", ["feed"]).poll(5).assigned == {tp: Committed(3, b"and some above")}
    again.close()


def test_a_large_topic_opens_fast_after_a_reboot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the clock, which other tests share: by what is read of it, which is nothing."""
    broker = EmbeddedBroker(str(tmp_path))
    producer = broker.producer()
    for _ in range(20):
        producer.send_many("feed", [Message(b"x" * 60)] * 10_000)
    broker.close()
    monkeypatch.setattr(RealFiles, "boot_id", lambda self: (5, 5))
    read = 0
    pread = RealFiles.pread

    def counting(fd: int, size: int, position: int, /) -> bytes:
        nonlocal read
        found = pread(fd, size, position)
        read += len(found)
        return found

    monkeypatch.setattr(RealFiles, "pread", staticmethod(counting))
    again = EmbeddedBroker(str(tmp_path))
    bounds = [again.reader().bounds(TopicPartition("feed", number)) for number in range(8)]
    assert sum(one.end for one in bounds) == 200_000
    assert read < 200_000, "indexes and checkpoints, not the log of 15 MB"
    again.close()


def test_a_checkpoint_is_read_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    from taskq.broker.log.head import HeadState, Times

    there = checkpoint.Checkpoint(HeadState(5, 700, 20, 600, 16, 2), Times(9, 18, 24, 9))
    checkpoint.write(RealFiles(), str(tmp_path), there)
    assert checkpoint.read(RealFiles(), str(tmp_path)) == there
    path = tmp_path / "checkpoint"
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        found = checkpoint.read(RealFiles(), str(tmp_path))
        assert found is None or found == there
        path.write_bytes(raw[:at])
        assert checkpoint.read(RealFiles(), str(tmp_path)) in (None, there)
