"""What taskq has not put into a data directory, and what lost a part, is left alone, and stops nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskq.broker.cleaner import Cleaner
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.files import RealFiles
from taskq.broker.log.verify import verify
from taskq.broker.port import PartitionBounds, TopicPartition
from taskq.errors import BrokerUnavailable

TP = TopicPartition("feed", 0)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[EmbeddedBroker]:
    broker = EmbeddedBroker(str(tmp_path), partitions_default=1)
    broker.producer().send("feed", b"one")
    yield broker
    broker.close()


def clean(broker: EmbeddedBroker) -> None:
    assert Cleaner(broker._directory).clean()


def test_a_topic_that_lost_its_file_is_kept_until_it_is_restored(broker: EmbeddedBroker, tmp_path: Path) -> None:
    topic_file = tmp_path / "topics" / "feed" / "topic.json"
    text = topic_file.read_text()
    topic_file.unlink()
    clean(broker)
    assert broker.admin().topics() == []
    with pytest.raises(BrokerUnavailable, match=r"feed is there, without a topic\.json.*restore.*move it away"):
        broker.admin().create_topic("feed", 1)
    with closing(EmbeddedBroker(str(tmp_path))) as other, pytest.raises(BrokerUnavailable, match="restore"):
        other.producer().send("feed", b"two")
    assert verify(RealFiles(), str(tmp_path)).is_damaged
    topic_file.write_text(text)
    assert broker.reader().bounds(TP) == PartitionBounds(0, 1)


def test_what_is_foreign_among_topics_is_left_alone(broker: EmbeddedBroker, tmp_path: Path) -> None:
    topics = tmp_path / "topics"
    (topics / "lost+found").mkdir()
    (topics / "lost+found" / "precious").touch()
    for name in (".DS_Store", "backup~"):
        (topics / name).touch()
    before = sorted(topics.rglob("*"))
    clean(broker)
    assert sorted(topics.rglob("*")) == before
    with pytest.raises(BrokerUnavailable, match="DS_Store is there"):
        broker.admin().create_topic(".DS_Store", 1)


def test_a_half_deleted_topic_is_no_damage(broker: EmbeddedBroker, tmp_path: Path) -> None:
    directory = tmp_path / "topics" / "feed"
    (directory / "topic.json").rename(directory / "deleted")
    found = verify(RealFiles(), str(tmp_path))
    assert ["being deleted" in one.what for one in found.findings] == [True]
    assert not found.is_damaged


def test_a_topic_that_was_restored_while_it_was_half_deleted_stays(broker: EmbeddedBroker, tmp_path: Path) -> None:
    directory = tmp_path / "topics" / "feed"
    (directory / "deleted").write_text((directory / "topic.json").read_text())
    clean(broker)
    assert broker.reader().bounds(TP) == PartitionBounds(0, 1)
    assert not verify(RealFiles(), str(tmp_path)).is_damaged
