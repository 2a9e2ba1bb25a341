"""A data directory: its format, its topics, and their partitions, opened when first used."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MappingProxyType
from typing import Protocol

from taskq.broker.log import names, offsets
from taskq.broker.log.catalogue import Catalogue, Topic, not_found, read_json, write_json
from taskq.broker.log.files import TEMPORARY, Files, is_there
from taskq.broker.log.partition import Partition
from taskq.broker.port import PARTITIONS_DEFAULT, TopicPartition
from taskq.config import check_topic
from taskq.errors import BrokerUnavailable, ConfigError, TopicNotFound
from taskq.topics import TopicConfig, own_config


class Listener(Protocol):
    """Who keeps something of a topic."""

    def forget(self, topic: str) -> None:
        """The topic has been altered or deleted. From any thread, maybe under an append lock: it must not wait."""
        ...


class DataDirectory:
    """Thread-safe. Any number of processes may use one directory at once.

    `wake(topic, bits)` is called when an append begins that consumers of the topic wait for. `syncs` is false if nobody
    ever syncs what is published.
    """

    def __init__(
        self,
        root: str,
        files: Files,
        wake: Callable[[str, int], None],
        *,
        partitions_default: int = PARTITIONS_DEFAULT,
        topics: Mapping[str, TopicConfig] = MappingProxyType({}),
        syncs: bool = True,
    ) -> None:
        self.root = root
        self.files = files
        self._wake = wake
        self._partitions_default = partitions_default
        self._configured = topics
        self._syncs = syncs
        self.catalogue = Catalogue(root, files)
        self._mutex = threading.Lock()
        self._opened: dict[TopicPartition, Partition] = {}
        self._topics: dict[str, Topic] = {}
        """As they were when last looked at."""
        self._listeners_mutex = threading.Lock()
        self._listeners: weakref.WeakSet[Listener] = weakref.WeakSet()
        self._prepare()

    def _prepare(self) -> None:
        """Make the directory, or check that it is one of ours and of this version."""
        made = [self.root]
        try:
            while not is_there(self.files, parent := os.path.dirname(made[-1]) or "."):
                made.append(parent)
            self.files.makedirs(self.root)
            known = set(self.files.listdir(self.root))
            if "taskq.json" in known:
                self._check_format()
                return
            if foreign := {name for name in known if not (names.is_root_file(name) or name.endswith(TEMPORARY))}:
                some = ", ".join(sorted(foreign)[:3])
                raise ConfigError(f"{self.root} is not a taskq data directory and not empty (it holds {some})")
            for path in (names.topics(self.root), names.groups(self.root)):
                self.files.makedirs(path)
            # Durable before the format file is seen: whoever finds that one takes the rest for granted.
            self.files.sync_directory(self.root)
            for path in made:
                self.files.sync_directory(os.path.dirname(path) or ".")
            write_json(self.files, names.format_file(self.root), {"format": names.FORMAT_VERSION})
        except OSError as error:
            raise BrokerUnavailable(
                f"can't use {self.root} as a data directory: {error.strerror} ({error.filename or self.root}). "
                "It must be a directory on a local file system that this user may write to"
            ) from error

    def _check_format(self) -> None:
        path = names.format_file(self.root)
        found = read_json(self.files, path).get("format")
        if found != names.FORMAT_VERSION:
            raise BrokerUnavailable(
                f"{path} says format {found!r}; this version of taskq reads format {names.FORMAT_VERSION}. "
                "Use the version that made it, or another directory"
            )
        fd = self.files.open(path)  # a directory we may read but not write is refused here, not at the first append
        self.files.close(fd)

    # -- topics

    def topics(self) -> list[str]:
        return self.catalogue.names()

    def count(self, name: str) -> int:
        return self.get(name).partitions

    def create(self, name: str, partitions: int, *, exist_ok: bool = False) -> None:
        """Create a topic, whole or not at all. Raises ConfigError for a bad name or number, or if it exists."""
        self.catalogue.create(check_topic(name), partitions, {}, exist_ok=exist_ok)

    def find(self, name: str) -> Topic | None:
        """The topic as it is now, or None if there is none. Raises ConfigError for a name that no topic can have.

        Costs a look at one file's inode: what is known of the topic holds as long as that is the same.
        """
        known = self._topics.get(name)
        if known is None:
            check_topic(name)
        stamp = self.catalogue.stamp(name)
        if known is not None and known.stamp == stamp:
            return known
        found = self.catalogue.read(name)
        if found is not None:
            self._topics[name] = found
        else:
            self._topics.pop(name, None)
        if known is not None:
            if found is None or found.id != known.id:
                self._let_go(name)
            self._tell(name)
        return found

    def get(self, name: str) -> Topic:
        """The topic as it is now. Raises TopicNotFound."""
        found = self.find(name)
        if found is None:
            raise not_found(self.root, name, self.catalogue.names())
        return found

    def ensure(self, name: str) -> Topic:
        """The topic, which is created as configured if there is none."""
        found = self.find(name)
        if found is None:
            config = self._configured.get(name) or own_config(name)
            self.catalogue.create(name, config.partitions or self._partitions_default, config.settings, exist_ok=True)
            found = self.get(name)
        return found

    def refresh(self) -> None:
        """Look whether topics that are in use have been altered or deleted, and tell those who use them."""
        for name in list(self._topics):
            self.find(name)

    def subscribe(self, listener: Listener) -> None:
        """Have `listener` told when a topic that it may be using has been altered or deleted."""
        with self._listeners_mutex:
            self._listeners.add(listener)

    def _tell(self, name: str) -> None:
        with self._listeners_mutex:  # which is held for nothing else: this may be called under an append lock
            listeners = list(self._listeners)
        for listener in listeners:
            listener.forget(name)

    def _let_go(self, name: str) -> None:
        """Close the partitions of a topic that is gone."""
        with self._mutex:
            of_it = [tp for tp, partition in self._opened.items() if tp.topic == name and partition.is_deleted]
            gone = [self._opened.pop(tp) for tp in of_it]
        for partition in gone:
            partition.close()

    # -- partitions

    def partition(self, tp: TopicPartition) -> Partition:
        """The partition, opened once and kept. Raises TopicNotFound."""
        while True:
            topic = self._topic_of(tp)
            found = self._opened.get(tp)
            if found is not None and not found.is_deleted:
                return found
            with self._mutex:
                found = self._opened.get(tp)
                if found is None or found.is_deleted:
                    opened = self._opened[tp] = self._open(tp)
                    if found is not None:
                        found.close()
                    found = opened
            if (
                self.catalogue.stamp(tp.topic) == topic.stamp
            ):  # or what was opened may be of the next topic of that name
                return found

    @contextmanager
    def borrowed(self, tp: TopicPartition) -> Generator[Partition]:
        """The partition, for a look. It is not kept open if it was not: there may be more than files can be open."""
        self._topic_of(tp)
        found = self._opened.get(tp)
        if found is not None and not found.is_deleted:
            yield found
            return
        opened = self._open(tp)
        try:
            yield opened
        finally:
            opened.close()

    def _topic_of(self, tp: TopicPartition) -> Topic:
        topic = self.get(tp.topic)
        if not 0 <= tp.partition < topic.partitions:
            raise TopicNotFound(f"topic {tp.topic!r} has partitions 0 to {topic.partitions - 1}, not {tp.partition}")
        return topic

    def _open(self, tp: TopicPartition) -> Partition:
        partition = Partition(
            self.files,
            names.partition(names.topic(self.root, tp.topic), tp.partition),
            str(tp),
            partial(self._wake, tp.topic),
            partial(self._recovered, tp),
            altered=partial(self._altered, tp.topic),
        )
        partition.is_dirty_for_good = not self._syncs
        return partition

    def _altered(self, name: str) -> int | None:
        """The settings of a topic may have changed: tell who publishes to it. Called under an append lock."""
        known, found = self._topics.get(name), self.catalogue.read(name)
        if found != known:
            self._tell(name)
        size = found.given.get("segment_bytes") if found is not None else None
        return size if isinstance(size, int) else None

    def _recovered(self, tp: TopicPartition, end: int) -> list[str]:
        # Whoever created the topic may have died before it was durable, and nothing that is published to it would be.
        self.files.sync_directory(names.topics(self.root))
        return offsets.forget_beyond(self.files, self.root, tp.topic, tp.partition, end)

    def opened(self) -> list[Partition]:
        """Those that are open. Does not wait while another one is opened, which may be recovered for seconds: who syncs
        them must go on.
        """
        return list(self._opened.values())  # a single step: it runs nothing of ours that could let another thread in

    def close(self) -> None:
        with self._mutex:  # whatever is being opened must be closed, too
            opened = self.opened()
        for partition in opened:
            partition.close()
