"""How a process that publishes wakes processes that wait: a FIFO for each waiting consumer.

A consumer makes one FIFO and links it into a directory for its group and one for every topic it reads. In a topic's
directory it takes a free slot, a number; before it sleeps it sets that slot's bit in the head of every partition it
holds (log/head.py's `waiting` word). Who appends finds the bits, and rings those consumers and no others. Nobody polls,
nothing is looked up, and nothing is rung while no consumer sleeps. SLOT_SHARED is for all that come when the others are
taken: whoever finds its bit lists the directory and rings them all.

Who is killed leaves its FIFO and its links, which nobody reads: opening them says so (ENXIO). A name that no other will
ever have, one in a group's directory or a shared slot's, is removed by whoever finds it dead: every FIFO is opened
before it gets such a name. A numbered slot is removed only under the topic's lock, by who takes it.

Why a FIFO and not a Unix datagram socket: docs/decisions/001-wake-up-by-fifo.md.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress

from taskq.broker.log.files import Files
from taskq.broker.log.locks import close_in_child, close_lockable, forget, lock, open_lockable

NEW_RECORDS = b"r"
GROUP_CHANGED = b"g"

SLOT_SHARED = 62
"""The highest bit of a signed 64-bit word."""

_READ_BYTES = 65_536  # the most a FIFO holds
_UNFINISHED = "~"  # ends the name of a FIFO that its owner has not opened yet

_log = logging.getLogger("taskq.broker")


class Wakeup:
    """The waiting end. `ring` may be called from any thread; the rest by one.

    `group` is its group's directory, `topics` those of the topics it reads; `masks` says, in their order, which bit is
    its own.
    """

    def __init__(self, files: Files, name: str, group: str, topics: Sequence[str]) -> None:
        for directory in (group, *topics):
            files.makedirs(directory)
        self._paths = [f"{group}/{name}"]
        files.mkfifo(self._paths[0] + _UNFINISHED)
        # Opened for writing too: it never reads as closed when the last writer goes, and `ring` needs no other way in.
        self._fd = os.open(self._paths[0] + _UNFINISHED, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        close_in_child(self._fd)  # which does not read it, and would make it look alive when we are dead
        self._pid = os.getpid()
        self._mutex = threading.RLock()  # reentrant: a signal handler may ring while its thread does
        self._is_closed = False
        try:
            files.rename(self._paths[0] + _UNFINISHED, self._paths[0])
            self.masks = [self._take_slot(files, directory, name) for directory in topics]
        except OSError:
            self._paths.append(self._paths[0] + _UNFINISHED)
            self.close()
            raise
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def _take_slot(self, files: Files, directory: str, name: str) -> int:
        """Link the FIFO into `directory` under the lowest free number; return that slot's mask."""
        lock_fd = open_lockable(files, f"{directory}/lock", create=True)
        try:
            lock(lock_fd)
            for slot in range(SLOT_SHARED + 1):
                path = f"{directory}/{slot}" if slot < SLOT_SHARED else shared_link(directory, name)
                if not os.path.exists(path) or remove_if_dead(path):
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
        """After `close`, and in a forked child, it does nothing: who rings need not know."""
        if os.getpid() != self._pid:
            return  # such as a signal handler that the child has from its parent
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
            forget(self._fd)
            os.close(self._fd)


def shared_link(directory: str, name: str) -> str:
    """The path of a consumer's link in a topic's directory if it came when all numbers were taken."""
    return f"{directory}/{SLOT_SHARED}-{name}"


def remove_if_dead(path: str) -> bool:
    """Remove a FIFO that nobody reads any more; True if it is gone."""
    try:
        os.close(_open(path))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise
        with suppress(FileNotFoundError):
            os.unlink(path)
        return True
    return False


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


class Bell:
    """The ringing end, shared by all threads of a process: keeps the numbered FIFOs open that it has rung.

    A bell that can't be rung fails nobody: it is logged, and who waits looks by itself at its next tick.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._fds: dict[str, int] = {}
        self._logged: set[int | None] = set()

    def ring(self, directory: str, mask: int) -> None:
        """Tell the consumers whose bits are set in `mask` that their topic, of this directory, has new records."""
        with self._mutex:
            while mask:
                slot = (mask & -mask).bit_length() - 1
                mask &= mask - 1
                if slot < SLOT_SHARED:
                    self._ring_slot(f"{directory}/{slot}")
                else:
                    self._ring_all(directory, f"{slot}-", NEW_RECORDS)

    def ring_group(self, directory: str) -> None:
        """Tell every member of a group that somebody has come or gone."""
        with self._mutex:
            self._ring_all(directory, "", GROUP_CHANGED)

    def _ring_slot(self, path: str) -> None:
        fd = self._fds.get(path)
        if fd is not None:
            if self._write(path, fd, NEW_RECORDS):
                return
            self._drop(path)  # this one is dead, but another may have taken its slot
        try:
            fd = _open(path)
        except OSError as error:
            self._log_unless_dead(path, error)
            return
        close_in_child(fd)
        self._fds[path] = fd
        if not self._write(path, fd, NEW_RECORDS):
            self._drop(path)

    def _ring_all(self, directory: str, prefix: str, what: bytes) -> None:
        """Ring all whose names begin so. None is kept open, since no name comes again; dead ones are removed."""
        try:
            found = os.listdir(directory)
        except OSError as error:
            self._log_unless_dead(directory, error)
            return
        for name in found:
            if name.startswith(prefix) and not name.endswith(_UNFINISHED):
                self._ring_once(f"{directory}/{name}", what)

    def _ring_once(self, path: str, what: bytes) -> None:
        try:
            fd = _open(path)
        except OSError as error:
            self._log_unless_dead(path, error)
            if error.errno == errno.ENXIO:
                with suppress(OSError):
                    os.unlink(path)
            return
        self._write(path, fd, what)
        os.close(fd)

    def _write(self, path: str, fd: int, what: bytes) -> bool:
        try:
            os.write(fd, what)
        except BlockingIOError:
            pass  # full: whoever reads it wakes up anyway
        except OSError as error:
            self._log_unless_dead(path, error)
            return False
        return True

    def _log_unless_dead(self, path: str, error: OSError) -> None:
        if error.errno not in (errno.ENXIO, errno.EPIPE, errno.ENOENT, *self._logged):
            self._logged.add(error.errno)
            _log.warning("can't wake who waits at %s: %s; they will look by themselves", path, error.strerror)

    def _drop(self, path: str) -> None:
        fd = self._fds.pop(path)
        forget(fd)
        os.close(fd)

    def close(self) -> None:
        with self._mutex:
            for path in list(self._fds):
                self._drop(path)
