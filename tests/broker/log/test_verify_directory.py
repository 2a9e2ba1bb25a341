"""`taskq log verify` of a whole data directory: its topics and what groups have committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log import names
from taskq.broker.log.inspection import WARNING
from taskq.broker.log.offsets import SLOT_BYTES, SLOT_POSITIONS, encode_slot
from taskq.broker.port import Committed, Message, TopicPartition
from tests.broker.log.segments import flip, overwrite
from tests.broker.log.test_verify import damage, look

FEED = TopicPartition("feed", 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory: a topic of two partitions, and a group that has committed."""
    broker = EmbeddedBroker(str(tmp_path), partitions_default=2)
    broker.producer().send_many("feed", [Message(b"%d" % number) for number in range(20)])
    consumer = broker.consumer("readers", ["feed"])
    while not consumer.poll(5).assigned:
        pass
    for number in (3, 4):
        consumer.commit({FEED: Committed(number, b"meta")})
    broker.close()
    return tmp_path


def test_a_sound_data_directory_has_no_findings(data: Path) -> None:
    found = look(data)
    assert found.findings == []
    assert (found.counts.topics, found.counts.partitions, found.counts.records) == (1, 2, 20)


def test_nothing_is_written(data: Path) -> None:
    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in data.rglob("*")}

    before = state()
    for path in (data, data / "topics" / "feed", data / "topics" / "feed" / "0"):
        look(path)
    assert state() == before


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("taskq.json", "{", "not the JSON"),
        ("taskq.json", '{"format": 99}', "format 99"),
        ("taskq.json", None, "missing"),
        ("topics/feed/topic.json", "[]", "not the JSON object"),
        ("topics/feed/topic.json", '{"partitions": "two"}', "how many partitions"),
        ("topics/feed/topic.json", None, "missing"),
        ("topics/feed/extra", "x", "foreign"),
        ("extra", "x", "foreign"),
    ],
)
def test_other_files_are_checked_too(data: Path, file: str, content: str | None, said: str) -> None:
    path = data / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    (one,) = damage(data)
    assert one.file == str(path)
    assert said in one.what


def test_a_missing_partition_is_found(data: Path) -> None:
    directory = data / "topics" / "feed" / "1"
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
    (one,) = damage(data)
    assert one.file == str(directory)


def lease(data: Path) -> Path:
    return data / "groups" / "readers" / "topics" / "feed" / "0"


def test_a_torn_commit_is_a_warning_and_two_are_damage(data: Path) -> None:
    path = lease(data)
    raw = path.read_bytes()
    first = next(at for at in SLOT_POSITIONS if raw[at : at + SLOT_BYTES].strip(b"\0"))
    flip(path, first + 20)
    (one,) = [one for one in look(data).findings if one.severity == WARNING]
    assert (one.file, one.position) == (str(path), first)
    assert damage(data) == []
    overwrite(path, 512, b"\1" * (len(raw) - 512))
    (one,) = damage(data)
    assert one.file == str(path)
    assert "begins again at the start of feed/0" in one.what
    path.write_bytes(raw)
    assert look(data).findings == []


def test_a_commit_beyond_the_end_is_damage(data: Path) -> None:
    overwrite(lease(data), 512, encode_slot(99, Committed(5000), 5000))
    (one,) = damage(data)
    assert "committed offset 5000" in one.what


def test_a_directory_in_use_is_sound(tmp_path: Path) -> None:
    """Groups at work, and topics that are created, altered and deleted: nothing of it is foreign or damaged."""
    broker = EmbeddedBroker(str(tmp_path), partitions_default=2)
    producer, admin = broker.producer(), broker.admin()
    producer.send_many("feed", [Message(b"%d" % number, b"k") for number in range(50)])
    producer.send("gone", b"x")
    consumer = broker.consumer("readers", ["feed", "gone"])
    while not consumer.poll(0.1).assigned:
        pass
    consumer.commit({FEED: Committed(0, b"meta")})
    admin.create_topic("keyed", 1, cleanup_policy="compact")
    admin.alter_topic("feed", partitions=3)
    assert look(tmp_path).findings == []
    admin.delete_topic("gone")
    assert look(tmp_path).findings == []
    broker.close()
    for path in (names.cleaner_lock(str(tmp_path)), names.producer_ids(str(tmp_path))):
        Path(path).touch()
    assert look(tmp_path).findings == []
