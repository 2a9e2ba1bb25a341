"""How a process that publishes wakes processes that wait: a FIFO for each waiting consumer.

A consumer makes one FIFO and links it into a directory for its group and one for every topic it reads. In a topic's
directory it takes a free slot, a number; before it sleeps it sets that slot's bit in the head of every partition it
holds (log/head.py's `waiting` word). Who appends finds the bits, and rings those consumers and no others. Nobody polls,
nothing is looked up, and nothing is rung while no consumer sleeps. SLOT_SHARED is for all that come when the others are
taken: whoever finds its bit lists the directory and rings them all.

Why a FIFO and not a Unix datagram socket: docs/decisions/001-wake-up-by-fifo.md.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress

from taskq.broker.log.files import Files
from taskq.broker.log.locks import close_lockable, lock, open_lockable

NEW_RECORDS = b"r"
GROUP_CHANGED = b"g"

SLOT_SHARED = 62
"""The highest bit of a signed 64-bit word."""

_READ_BYTES = 65_536  # the most a FIFO holds


class Wakeup:
    """The waiting end. `ring` may be called from any thread; the rest by one.

    `group` is its group's directory, `topics` those of the topics it reads; `masks` says, in their order, which bit is
    its own.
    """

    def __init__(self, files: Files, name: str, group: str, topics: Sequence[str]) -> None:
        for directory in (group, *topics):
            files.makedirs(directory)
        self._paths = [f"{group}/{name}"]
        files.mkfifo(self._paths[0])
        # Opened for writing too: it never reads as closed when the last writer goes, and `ring` needs no other way in.
        self._fd = os.open(self._paths[0], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._mutex = threading.RLock()  # reentrant: a signal handler may ring while its thread does
        self._is_closed = False
        self.masks = [self._take_slot(files, directory, name) for directory in topics]
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def _take_slot(self, files: Files, directory: str, name: str) -> int:
        """Link the FIFO into `directory` under the lowest free number; return that slot's mask."""
        lock_fd = open_lockable(files, f"{directory}/lock", create=True)
        try:
            lock(lock_fd)
            for slot in range(SLOT_SHARED + 1):
                path = f"{directory}/{slot}" if slot < SLOT_SHARED else f"{directory}/{slot}-{name}"
                if not os.path.exists(path) or _remove_if_dead(path):
                    os.link(self._paths[0], path)
                    self._paths.append(path)
                    return 1 << slot
            raise AssertionError("a name of one's own is always free")
        finally:
            close_lockable(files, lock_fd)

    def wait(self, timeout_s: float) -> bytes:
        """Sleep until rung or `timeout_s` has passed; return the bytes that were written meanwhile, b"" if none."""
        if not self._poll.poll(max(0.0, timeout_s) * 1000):
            return b""
        with suppress(BlockingIOError):
            return os.read(self._fd, _READ_BYTES)
        return b""

    def ring(self, what: bytes) -> None:
        """After `close` it does nothing: who rings need not know."""
        with self._mutex, suppress(BlockingIOError):  # it is full: whoever reads it wakes up anyway
            if not self._is_closed:
                os.write(self._fd, what)

    def close(self) -> None:
        with self._mutex:
            if self._is_closed:
                return
            self._is_closed = True
            for path in self._paths:
                with suppress(FileNotFoundError):
                    os.unlink(path)
            os.close(self._fd)


def _remove_if_dead(path: str) -> bool:
    """Remove a FIFO that nobody reads any more."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise
        with suppress(FileNotFoundError):
            os.unlink(path)
        return True
    return False


class Bell:
    """The ringing end, shared by all threads of a process: keeps the FIFOs open that it has rung."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._fds: dict[str, int] = {}

    def ring(self, directory: str, mask: int) -> None:
        """Tell the consumers whose bits are set in `mask` that their topic, of this directory, has new records."""
        with self._mutex:
            while mask:
                slot = (mask & -mask).bit_length() - 1
                mask &= mask - 1
                if slot < SLOT_SHARED:
                    self._ring(f"{directory}/{slot}", NEW_RECORDS)
                else:
                    self._ring_all(directory, f"{slot}-", NEW_RECORDS)

    def ring_group(self, directory: str) -> None:
        """Tell every member of a group that somebody has come or gone."""
        with self._mutex:
            self._ring_all(directory, "", GROUP_CHANGED)

    def _ring_all(self, directory: str, prefix: str, what: bytes) -> None:
        with suppress(FileNotFoundError):
            for name in os.listdir(directory):
                if name.startswith(prefix):
                    self._ring(f"{directory}/{name}", what)

    def _ring(self, path: str, what: bytes) -> None:
        fd = self._fds.pop(path, -1)
        for is_cached in (True, False) if fd >= 0 else (False,):
            try:
                if not is_cached:
                    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.write(fd, what)
            except BlockingIOError:
                pass  # full: whoever reads it wakes up anyway
            except OSError as error:
                if error.errno not in (errno.ENXIO, errno.EPIPE, errno.ENOENT):
                    raise
                if fd >= 0:
                    os.close(fd)
                fd = -1
                continue  # the one that was open is dead, but another may have taken its slot
            self._fds[path] = fd
            return

    def close(self) -> None:
        with self._mutex:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()
