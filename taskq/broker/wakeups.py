"""How a process that publishes wakes processes that wait: a FIFO for each waiting consumer.

A consumer makes one FIFO and links it into the directory of every topic it reads and of its group. Who has
something to tell opens what lies in that directory and writes a byte. Nobody polls, and nobody is told anything while
no consumer sleeps (log/head.py's `waiting` word says so).

Why a FIFO and not a Unix datagram socket: a socket's path is limited to some 100 bytes, which a data directory
easily exceeds; a FIFO's is not, and one system call of 0.4 us writes to it once it is open. Both can be waited for
with a time-out, and both say when their reader is dead: then whoever notices removes it.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Sequence
from contextlib import suppress

from taskq.broker.log.files import Files

NEW_RECORDS = b"r"
GROUP_CHANGED = b"g"

_READ_BYTES = 65_536  # the most a FIFO holds


class Wakeup:
    """The waiting end. `ring` may be called from any thread; the rest by one."""

    def __init__(self, files: Files, name: str, directories: Sequence[str]) -> None:
        self._paths = [f"{directory}/{name}" for directory in directories]
        for directory in directories:
            files.makedirs(directory)
        files.mkfifo(self._paths[0])
        # Opened for writing too: it never reads as closed when the last writer goes, and `ring` needs no other way in.
        self._fd = os.open(self._paths[0], os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        for path in self._paths[1:]:
            os.link(self._paths[0], path)
        self._mutex = threading.RLock()  # reentrant: a signal handler may ring while its thread does
        self._is_closed = False
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

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
            self._is_closed = True
        for path in self._paths:
            with suppress(FileNotFoundError):
                os.unlink(path)
        os.close(self._fd)


class Bell:
    """The ringing end, shared by all threads of a process: keeps the FIFOs open that it has rung."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._fds: dict[str, int] = {}

    def ring(self, directory: str, what: bytes) -> None:
        """Wake every consumer that waits in `directory`."""
        try:
            waiting = os.listdir(directory)
        except FileNotFoundError:
            return
        with self._mutex:
            for name in waiting:
                self._ring(f"{directory}/{name}", what)
            if len(self._fds) > 2 * len(waiting) + 64:
                self._forget_all()

    def _ring(self, path: str, what: bytes) -> None:
        fd = self._fds.get(path, -1)
        try:
            if fd < 0:
                fd = self._fds[path] = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.write(fd, what)
        except BlockingIOError:
            pass  # full: whoever reads it wakes up anyway
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.EPIPE, errno.ENOENT):
                raise
            if fd >= 0:
                os.close(self._fds.pop(path))
            with suppress(FileNotFoundError):
                os.unlink(path)  # its reader is dead

    def _forget_all(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def close(self) -> None:
        with self._mutex:
            self._forget_all()
