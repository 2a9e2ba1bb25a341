"""The thread that removes what topics need not keep any more: retention and compaction, every half a minute.

Every process that publishes or consumes has one; a lock on the data directory lets one at a time do the work. It also
has its own process look whether topics were altered or deleted, in case the news of it got lost with who did it, and
finishes deletions that were cut short. It never raises: what goes wrong with a partition is logged, and tried again
the next time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from attrs import evolve

from taskq.broker.log import names, offsets, retention
from taskq.broker.log.catalogue import Topic
from taskq.broker.log.compaction import CompactionSettings, compact
from taskq.broker.log.directory import DataDirectory
from taskq.broker.log.files import Files
from taskq.broker.log.locks import close_lockable, open_lockable, try_lock
from taskq.broker.log.partition import Partition
from taskq.broker.port import TopicPartition
from taskq.errors import TopicNotFound

INTERVAL_S = 30.0

RUBBISH_MS = 60 * 60 * 1000
"""How old a small file that is being written must be to be taken for one whose writer died: that takes milliseconds."""

_log = logging.getLogger("taskq.broker")


class Cleaner:
    """Started by the first `start`, one for each opened broker."""

    def __init__(
        self, directory: DataDirectory, interval_s: float = INTERVAL_S, now: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._interval_s = interval_s
        self._now = now
        self._mutex = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun already or is closed."""
        with self._mutex:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="taskq-cleaner", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """End the thread, after the partition it is at; a compaction is cut short."""
        with self._mutex:
            self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        # Not all at once: processes are often started together.
        while not self._closing.wait(self._interval_s * random.uniform(0.5, 1.0)):
            try:
                self._directory.refresh()
                self.clean()
            except Exception:
                _log.exception("cleaning %s failed; trying again", self._directory.root)

    def clean(self) -> bool:
        """Do it once; False if another process is at it."""
        files, root = self._directory.files, self._directory.root
        lock_fd = open_lockable(files, names.cleaner_lock(root), create=True)
        try:
            if not try_lock(lock_fd):
                return False
            self._directory.catalogue.finish()
            for name in self._directory.topics():
                topic = self._directory.find(name)
                if topic is not None:
                    self._clean_topic(topic)
        finally:
            close_lockable(files, lock_fd)
        return True

    def _clean_topic(self, topic: Topic) -> None:
        finished = self._finished(topic) if topic.settings.unfinished == "keep" else {}
        for number in range(topic.partitions):
            if self._closing.is_set():
                return
            tp = TopicPartition(topic.name, number)
            try:
                with self._directory.borrowed(tp) as partition:
                    self._clean_partition(partition, topic, finished.get(number, 0))
            except TopicNotFound:
                return  # deleted meanwhile
            except Exception as error:
                _log.error("%s can't be cleaned now: %s", tp, error)

    def _clean_partition(self, partition: Partition, topic: Topic, finished: int) -> None:
        files, settings, now_ms = self._directory.files, topic.settings, int(self._now() * 1000)
        _remove_rubbish(files, partition.directory, now_ms)
        if settings.cleanup_policy == "compact":
            retention.roll_if_old(files, partition, evolve(settings, retention_ms=-1), now_ms)
            chosen = CompactionSettings(settings.segment_bytes, settings.delete_retention_ms)
            compact(files, partition, chosen, now_ms, self._closing.wait)
            return
        gone = retention.clean(files, partition, settings, now_ms, finished)
        if gone:
            size = sum(segment.size_bytes for segment in gone)
            _log.info(
                "%s: removed %d old segments (%d bytes), up to offset %d", partition.name, len(gone), size, gone[-1].end
            )

    def _finished(self, topic: Topic) -> dict[int, int]:
        """Below which offset of each partition all groups have finished everything that ever committed in the topic.

        A partition that is absent: below none. None is there if no group has committed anything.
        """
        files, root = self._directory.files, self._directory.root
        lowest: dict[int, int] = {}
        for group in offsets.group_names(files, root):
            committed: dict[int, int] = {}
            for number in range(topic.partitions):
                _, found = offsets.peek(files, root, group, topic.name, number)
                if found is not None:
                    committed[number] = found.offset
            if (
                committed
            ):  # a group that has a say has it everywhere: where it has committed nothing, it finished nothing
                for number in range(topic.partitions):
                    lowest[number] = min(lowest.get(number, 1 << 62), committed.get(number, 0))
        return lowest


def _remove_rubbish(files: Files, directory: str, now_ms: int) -> None:
    """Remove what writers that died have left of small files they were writing.

    By age, not by the process in the name: those who share a directory need not see each other's processes.
    """
    for name in filter(names.is_temporary, files.listdir(directory)):
        path = f"{directory}/{name}"
        with suppress(FileNotFoundError):  # it was being written, and is done
            if now_ms - files.stamp(path)[1] // 1_000_000 > RUBBISH_MS:
                files.unlink(path)
