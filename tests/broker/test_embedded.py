from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.cursor import Cursor
from taskq.broker.log.files import RealFiles
from taskq.broker.port import MESSAGE_BYTES_MAX, Message, TopicPartition
from taskq.broker.shares import cut
from taskq.config import Durability
from taskq.errors import BrokerUnavailable, ConfigError, StorageError, TopicNotFound

OPENS_AS_NOBODY = """
import os, sys
from taskq.broker.embedded import EmbeddedBroker
from taskq.errors import BrokerUnavailable
if os.geteuid() == 0:  # to whom nothing is forbidden
    os.seteuid(65534)
try:
    EmbeddedBroker(sys.argv[1])
except BrokerUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["a folder where it can't be made", "a log that can only be read"])
def test_a_directory_without_write_permission_is_refused(tmp_path: Path, what: str) -> None:
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents:
        if parent.name.startswith("pytest-"):
            os.chmod(parent, 0o755)
    path = tmp_path / "log"
    if what == "a log that can only be read":
        with EmbeddedBrokerAt(path) as broker:
            broker.producer().send("feed", b"x")
        for found in [path, *path.rglob("*")]:
            os.chmod(found, 0o555 if found.is_dir() else 0o444)
    else:
        os.chmod(tmp_path, 0o555)
    ran = subprocess.run([sys.executable, "-c", OPENS_AS_NOBODY, str(path)], capture_output=True, text=True, timeout=30)
    os.chmod(tmp_path, 0o755)
    assert "can't use" in ran.stdout, ran.stderr
    assert "Permission denied" in ran.stdout
    assert str(path) in ran.stdout


def test_every_directory_that_is_made_for_it_has_a_name_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync_directory = RealFiles.sync_directory

    def noting(self: RealFiles, path: str) -> None:
        sync_directory(self, path)
        synced.append(path)

    monkeypatch.setattr(RealFiles, "sync_directory", noting)
    with EmbeddedBrokerAt(tmp_path / "some" / "where" / "log"):
        pass
    assert {str(tmp_path), f"{tmp_path}/some", f"{tmp_path}/some/where", f"{tmp_path}/some/where/log"} <= set(synced)


class EmbeddedBrokerAt:
    """A broker that is closed at the end."""

    def __init__(self, path: Path, durability: str = "interval:100") -> None:
        self._broker = EmbeddedBroker(str(path), durability=Durability.parse(durability))

    def __enter__(self) -> EmbeddedBroker:
        return self._broker

    def __exit__(self, *_: object) -> None:
        self._broker.close()


def test_a_directory_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    with EmbeddedBrokerAt(tmp_path) as broker:
        broker.producer().send("feed", b"x")
    (tmp_path / "taskq.json").write_text(json.dumps({"format": 3}))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(BrokerUnavailable, match="format 3; this version of taskq reads format 2"):
        EmbeddedBroker(str(tmp_path))
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_format_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taskq.json").write_text("[]")
    with pytest.raises(BrokerUnavailable, match="restore it"):
        EmbeddedBroker(str(tmp_path))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        EmbeddedBroker(str(tmp_path))
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_topic_that_only_half_exists_is_made_anew(tmp_path: Path) -> None:
    """Its creator was killed: what it left has no name that a topic can have."""
    with EmbeddedBrokerAt(tmp_path) as broker:
        (tmp_path / "topics" / "feed~" / "0").mkdir(parents=True)
        assert broker.admin().topics() == []
        broker.producer().send("feed", b"x")
        assert broker.admin().topics() == ["feed"]
        assert broker.admin().partitions("feed") == 8


def test_a_topic_whose_directory_is_gone_says_so(tmp_path: Path) -> None:
    import shutil

    with EmbeddedBrokerAt(tmp_path) as broker:
        broker.admin().create_topic("feed", 2)
        shutil.rmtree(tmp_path / "topics" / "feed" / "1")
        with pytest.raises(TopicNotFound, match="feed/1"):
            broker.admin().describe_topic("feed")


@pytest.mark.parametrize("durability", ["os", "interval:20", "fsync"])
def test_what_is_sent_is_read_whatever_the_durability(tmp_path: Path, durability: str) -> None:
    with EmbeddedBrokerAt(tmp_path, durability) as broker:
        producer = broker.producer()
        for number in range(20):
            producer.send("feed", b"%d" % number)
        assert sum(bounds.end for bounds in broker.admin().describe_topic("feed").partitions) == 20


def test_each_send_is_synced_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guarantee 1 with durability="fsync": nothing is acknowledged that a power cut could take."""
    with EmbeddedBrokerAt(tmp_path, "fsync") as broker:
        producer = broker.producer()
        producer.send("feed", b"first", b"key")
        partition = next(p for p in broker._directory.opened() if p.end())
        for _ in range(3):
            producer.send("feed", b"more", b"key")
            assert not partition.needs_sync


def test_the_flusher_syncs_within_its_interval(tmp_path: Path) -> None:
    from tests.processes import wait_until

    with EmbeddedBrokerAt(tmp_path, "interval:20") as broker:
        producer = broker.producer()
        for _ in range(3):
            producer.send("feed", b"x")
            assert any(partition.needs_sync for partition in broker._directory.opened())
            wait_until(lambda: not any(p.needs_sync for p in broker._directory.opened()), "it is synced", within_s=5)


def test_a_batch_is_cut_by_all_it_holds() -> None:
    """Our own headers too, which the limit on a message leaves out."""
    letter = Message(b"x" * MESSAGE_BYTES_MAX, None, (("taskq-error", b"e" * 300_000),))
    small = Message(b"x", None, (("taskq-error", b"e" * 200_000),))
    assert [len(batch) for batch in cut("dead", [letter, letter, small, small])] == [1, 1, 1, 1]


def fail_to_read(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def read(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Cursor, "read", read)


def test_a_partition_that_cannot_be_read_is_reported_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedBrokerAt(tmp_path) as broker:
        broker.producer().send("feed", b"x", b"key")
        consumer = broker.consumer("g", ["feed"])
        assert len(consumer.poll(0).assigned) == 8
        fail_to_read(monkeypatch, errno.EIO)
        [(tp, error)] = consumer.poll(0).errors.items()
        assert isinstance(tp, TopicPartition)
        assert isinstance(error, StorageError)
        assert str(error) == f"{tp}: reading failed: {os.strerror(errno.EIO)} (its log)"
        assert not consumer.poll(0).errors


def test_too_many_open_files_are_no_partitions_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedBrokerAt(tmp_path) as broker:
        broker.producer().send("feed", b"x")
        consumer = broker.consumer("g", ["feed"])
        consumer.poll(0)
        fail_to_read(monkeypatch, errno.EMFILE)
        with pytest.raises(BrokerUnavailable, match=r"too many open files: this process may have .*ulimit"):
            consumer.poll(0)
