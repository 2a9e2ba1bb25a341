"""What lies among the groups of a data directory that taskq has not put there stops nobody, and is no group."""

from __future__ import annotations

from pathlib import Path

from taskq.broker.cleaner import Cleaner
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.port import Committed, TopicPartition
from tests.processes import wait_until


def test_what_is_foreign_among_groups_is_no_group(tmp_path: Path) -> None:
    tp = TopicPartition("feed", 0)
    broker = EmbeddedBroker(str(tmp_path), partitions_default=1)
    broker.producer().send("feed", b"one")
    consumer = broker.consumer("group", ["feed"])
    wait_until(lambda: consumer.poll(1).assigned, "it is assigned")
    consumer.commit({tp: Committed(1)})
    (tmp_path / "groups" / ".DS_Store").touch()
    (tmp_path / "groups" / "lost+found").mkdir()
    assert broker.admin().groups() == ["group"]
    assert Cleaner(broker._directory)._finished(broker._directory.get("feed")) == {0: 1}
    broker.close()
    (tmp_path / "topics" / "feed" / "0" / "head").unlink()  # as after a reboot
    broker = EmbeddedBroker(str(tmp_path), partitions_default=1)
    assert broker.producer().send("feed", b"two") == (0, 1)
    broker.admin().delete_topic("feed")
    assert broker.admin().topics() == []
    assert broker.admin().describe_group("group").committed == {}
    broker.close()
    assert (tmp_path / "groups" / ".DS_Store").exists()
