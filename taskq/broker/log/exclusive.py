"""A partition's append lock: who holds it is the only one, of all threads and processes, to change the log's end."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from taskq.broker.log.files import Files
from taskq.broker.log.head import Head
from taskq.broker.log.locks import lock, unlock
from taskq.broker.log.reading import PartitionView
from taskq.errors import BrokerError, BrokerUnavailable


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
        with self._mutex:
            if self._head_fd < 0:
                raise self._closed()
            lock(self._head_fd)
            try:
                yield
            finally:
                unlock(self._head_fd)

    def wait_for_append(self, mask: int) -> None:
        """Ask for `wake(mask)` to be called at the next append, whoever makes it. Waits for one under way."""
        if not self._head.is_waiting(mask):
            with self.locked():
                self._head.set_waiting(mask)

    def _closed(self) -> BrokerError:
        if self.is_deleted:
            return self._gone()
        return BrokerUnavailable(f"{self.name}: the broker has been closed by this process; open it again")
