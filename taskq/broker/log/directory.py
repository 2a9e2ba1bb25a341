"""A data directory: its format, its topics, and their partitions, opened when first used."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from taskq.broker.limits import check_partitions
from taskq.broker.log import names, offsets
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import TEMPORARY, Files, encode_json, read_whole, write_whole
from taskq.broker.log.locks import close_lockable, lock, open_lockable
from taskq.broker.log.partition import Partition
from taskq.broker.port import PARTITIONS_DEFAULT, TopicPartition
from taskq.config import check_topic
from taskq.errors import BrokerUnavailable, ConfigError, TopicNotFound

_log = logging.getLogger("taskq.log")


class DataDirectory:
    """Thread-safe. Any number of processes may use one directory at once.

    `wake(topic, bits)` is called when an append begins that consumers of the topic wait for.
    """

    def __init__(
        self,
        root: str,
        files: Files,
        wake: Callable[[str, int], None],
        *,
        partitions_default: int = PARTITIONS_DEFAULT,
        partitions: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.root = root
        self.files = files
        self._wake = wake
        self._partitions_default = partitions_default
        self._partitions_configured = partitions
        self._mutex = threading.Lock()
        self._opened: dict[TopicPartition, Partition] = {}
        self._counts: dict[str, int] = {}
        self._prepare()

    def _prepare(self) -> None:
        """Make the directory, or check that it is one of ours and of this version."""
        try:
            self.files.makedirs(self.root)
            known = set(self.files.listdir(self.root))
            if "taskq.json" in known:
                self._check_format()
                return
            if foreign := known - {"lock", "topics", "groups", "waiters"} - {n for n in known if n.endswith(TEMPORARY)}:
                some = ", ".join(sorted(foreign)[:3])
                raise ConfigError(f"{self.root} is not a taskq data directory and not empty (it holds {some})")
            for path in (names.topics(self.root), names.groups(self.root)):
                self.files.makedirs(path)
            # Durable before the format file is seen: whoever finds that one takes the rest for granted.
            self.files.sync_directory(self.root)
            self.files.sync_directory(os.path.dirname(self.root))
            self._write_json(names.format_file(self.root), {"format": names.FORMAT_VERSION})
        except OSError as error:
            raise BrokerUnavailable(
                f"can't use {self.root} as a data directory: {error.strerror} ({error.filename or self.root}). "
                "It must be a directory on a local file system that this user may write to"
            ) from error

    def _check_format(self) -> None:
        path = names.format_file(self.root)
        found = self._read_json(path).get("format")
        if found != names.FORMAT_VERSION:
            raise BrokerUnavailable(
                f"{path} says format {found!r}; this version of taskq reads format {names.FORMAT_VERSION}. "
                "Use the version that made it, or another directory"
            )
        fd = self.files.open(path)  # a directory we may read but not write is refused here, not at the first append
        self.files.close(fd)

    def _read_json(self, path: str) -> dict[str, object]:
        text = read_whole(self.files, path)
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise BrokerUnavailable(f"{path} does not hold what taskq writes there; restore it from a backup")
        return document

    def _write_json(self, path: str, document: Mapping[str, object]) -> None:
        write_whole(self.files, path, encode_json(document))
        self.files.sync_directory(os.path.dirname(path))

    # -- topics

    def topics(self) -> list[str]:
        return sorted(name for name in self.files.listdir(names.topics(self.root)) if not name.endswith("~"))

    def find_count(self, topic: str) -> int | None:
        """The number of partitions of `topic`, or None if there is no such topic."""
        count = self._counts.get(topic)
        if count is None:
            check_topic(topic)
            path = names.topic_file(names.topic(self.root, topic))
            try:
                found = self._read_json(path).get("partitions")
            except FileNotFoundError:
                return None
            if not isinstance(found, int):
                raise BrokerUnavailable(f"{path} does not say how many partitions there are")
            count = self._counts[topic] = found
        return count

    def count(self, topic: str) -> int:
        count = self.find_count(topic)
        if count is None:
            raise TopicNotFound(f"there is no topic {topic!r} in {self.root}; there are: {', '.join(self.topics())}")
        return count

    def ensure(self, topic: str) -> int:
        """The number of partitions of `topic`, which is created as configured if there is none."""
        count = self.find_count(topic)
        if count is None:
            self.create(topic, self._partitions_configured.get(topic, self._partitions_default), exist_ok=True)
            count = self.count(topic)
        return count

    def create(self, topic: str, partitions: int, *, exist_ok: bool = False) -> None:
        """Create a topic, whole or not at all. Raises ConfigError for a bad name or number, or if it exists."""
        check_topic(topic)
        check_partitions(topic, partitions)
        lock_fd = open_lockable(self.files, names.lock_file(self.root), create=True)
        try:
            lock(lock_fd)
            if self.find_count(topic) is None:
                self._create(topic, partitions)
            elif not exist_ok:
                raise ConfigError(f"topic {topic!r} exists already, with {self.count(topic)} partitions")
            else:  # its creator may have died just before this
                self.files.sync_directory(names.topics(self.root))
        except OSError as error:
            raise storage_error(f"topic {topic!r} can't be created", self.root, error) from error
        finally:
            close_lockable(self.files, lock_fd)

    def _create(self, topic: str, partitions: int) -> None:
        final = names.topic(self.root, topic)
        unfinished = f"{final}~"  # not a topic's name: what a creator that died left is not seen, and removed here
        self.files.remove_tree(unfinished)
        for number in range(partitions):
            self.files.makedirs(names.partition(unfinished, number))
        self._write_json(names.topic_file(unfinished), {"partitions": partitions})
        self.files.rename(unfinished, final)
        self.files.sync_directory(names.topics(self.root))
        _log.debug("created topic %s with %d partitions", topic, partitions)

    # -- partitions

    def partition(self, tp: TopicPartition) -> Partition:
        """The partition, opened once and kept. Raises TopicNotFound."""
        found = self._opened.get(tp)
        return found if found is not None else self._open(tp)

    def _open(self, tp: TopicPartition) -> Partition:
        count = self.count(tp.topic)
        if not 0 <= tp.partition < count:
            raise TopicNotFound(f"topic {tp.topic!r} has partitions 0 to {count - 1}, not {tp.partition}")
        with self._mutex:
            found = self._opened.get(tp)
            if found is None:
                directory = names.partition(names.topic(self.root, tp.topic), tp.partition)
                recovered = partial(self._recovered, tp)
                found = Partition(self.files, directory, str(tp), partial(self._wake, tp.topic), recovered)
                self._opened[tp] = found
            return found

    def _recovered(self, tp: TopicPartition, end: int) -> list[str]:
        # Whoever created the topic may have died before it was durable, and nothing that is published to it would be.
        self.files.sync_directory(names.topics(self.root))
        return offsets.forget_beyond(self.files, self.root, tp.topic, tp.partition, end)

    def opened(self) -> list[Partition]:
        with self._mutex:
            return list(self._opened.values())

    def close(self) -> None:
        for partition in self.opened():
            partition.close()
