"""A partition's append lock: who holds it is the only one, of all threads and processes, to change the log's end."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress

from taskq.broker.log import checkpoint
from taskq.broker.log.checkpoint import Checkpoint
from taskq.broker.log.files import Files
from taskq.broker.log.head import Head
from taskq.broker.log.locks import lock, unlock
from taskq.broker.log.reading import PartitionView
from taskq.errors import BrokerError, BrokerUnavailable


class _MovedError(Exception):
    """Retention has moved the start of the log."""


class LockablePartition(PartitionView):
    """A partition that can be locked: `_mutex` against this process's threads, then a flock against other processes, on
    the head's descriptor.
    """

    __slots__ = ("_head_fd", "_mutex")

    def __init__(self, files: Files, directory: str, name: str, head: Head, head_fd: int) -> None:
        super().__init__(files, directory, name, head)
        self._head_fd = head_fd
        """-1 once it is closed."""
        self._mutex = threading.Lock()

    @contextmanager
    def locked(self) -> Generator[None]:
        """Nobody appends inside this."""
        with self._mutex, self._flocked():
            yield

    @contextmanager
    def undeleted(self) -> Generator[None]:
        """Nobody appends inside this, and the topic is there. Raises TopicNotFound if it is not.

        Whoever goes by the name of a file must do it in here: a topic is deleted under this lock, and what has the name
        after that may be of the topic that was made anew.
        """
        with self.locked():
            self._check_there()
            yield

    @contextmanager
    def _flocked(self) -> Generator[None]:
        """What `locked` takes besides the mutex."""
        if self._head_fd < 0:
            raise self._closed()
        try:  # from before it is locked: see locks.py
            lock(self._head_fd)
            yield
        finally:
            unlock(self._head_fd)

    def keep_checkpoint(self, found: Checkpoint) -> None:
        """Put `found` in the place of the checkpoint there is, with the start of the log as it is then.

        Raises TopicNotFound or OSError.
        """
        with self._mutex:
            self._keep_checkpoint(found)

    def _keep_checkpoint(self, found: Checkpoint) -> None:
        """The same, under the mutex."""
        while True:
            start = self._head.state().start_offset
            with suppress(_MovedError):
                checkpoint.write(self._files, self._directory, found.beginning_at(start), self._beginning_at(start))
                return

    @contextmanager
    def _beginning_at(self, start_offset: int) -> Generator[None]:
        with self._flocked():
            self._check_there()
            if self._head.state().start_offset != start_offset:
                raise _MovedError
            yield

    def _check_there(self) -> None:
        if self.is_deleted:
            raise self._gone()

    def wait_for_append(self, mask: int) -> None:
        """Ask for `wake(mask)` to be called at the next append, whoever makes it. Waits for one under way."""
        if not self._head.is_waiting(mask):
            with self.locked():
                self._head.set_waiting(mask)

    def _closed(self) -> BrokerError:
        if self.is_deleted:
            return self._gone()
        return BrokerUnavailable(f"{self.name}: the broker has been closed by this process; open it again")
