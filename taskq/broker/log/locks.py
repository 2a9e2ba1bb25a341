"""flock, and what it does and does not do. The only module that imports `fcntl`.

A flock belongs to the open file description: the kernel frees it when the last descriptor of that description is
closed, so when its process dies, however it dies, and never sooner. That is why there is no time-out to tune and no
stalled holder that another overtakes by mistake.

What follows from "open file description", and who takes care of it:

- Two `open` calls in one process exclude each other as two processes do, but threads that share one descriptor do
  not: every descriptor that is locked here is guarded by a `threading.Lock` beside it.
- A forked child shares its parent's descriptions, and so its locks: they would outlive the parent, and nobody could
  take over from it. So descriptors that are ever locked are opened here, and a child closes its copies of them at once,
  which unlocks nothing of the parent's. (A process that is executed never gets them: they are close-on-exec.) What
  memory-maps such a file opens it once more for that, since a mapping keeps a copy of its descriptor.
- Network file systems differ. The data directory must be on a local one.

What a signal handler raises (KeyboardInterrupt, where somebody looks at a log from a notebook) may come between any two
calls, also between the one that takes a lock and whatever is to free it. A process that lives on would hold it for
ever. So a flock is taken inside of the `try` that frees it, since to unlock what is not locked does no harm. Of a
`threading.Lock` it must be known whether it is ours: it is taken with `with`, or by `attempts`.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import repeat

from taskq.broker.log.files import Files
from taskq.broker.port import WouldBlock

EXCLUSIVE = fcntl.LOCK_EX
TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
UNLOCK = fcntl.LOCK_UN
flock = fcntl.flock
"""The bare call, for the one place where a frame more would be felt (partition.py). Raises BlockingIOError for TRY."""


_not_for_children: set[int] = set()


def close_in_child(fd: int) -> None:
    """From now on a forked child closes its copy of `fd` at once. Say `forget` before it is closed."""
    _not_for_children.add(fd)


def forget(fd: int) -> None:
    """The opposite of `close_in_child`."""
    _not_for_children.discard(fd)


def open_lockable(files: Files, path: str, *, create: bool = False, write: bool = True) -> int:
    """Open a file (or, with write=False, a directory) that is to be locked. Close it with `close_lockable`."""
    fd = files.open(path, create=create, write=write)
    close_in_child(fd)
    return fd


def close_lockable(files: Files, fd: int) -> None:
    """Unlock it and close it."""
    flock(fd, UNLOCK)  # first: a child that is forked before it is closed has a copy of it, but of no lock
    forget(fd)
    files.close(fd)


def _close_in_child() -> None:
    for fd in _not_for_children:
        with suppress(OSError):
            os.close(fd)
    _not_for_children.clear()


os.register_at_fork(after_in_child=_close_in_child)


def lock(fd: int) -> None:
    """Take the lock, waiting for whoever holds it."""
    flock(fd, EXCLUSIVE)


def try_lock(fd: int) -> bool:
    """Take the lock if it is free."""
    try:
        flock(fd, TRY)
    except BlockingIOError:
        return False
    return True


def unlock(fd: int) -> None:
    flock(fd, UNLOCK)


# -- the locks of threads


def attempts(mutex: threading.Lock, *, wait: bool) -> Iterator[bool]:
    """`for is_ours in attempts(...): break` takes the mutex, or does not if it is taken and `wait` is false.

    It is a loop because no handler runs between the call that this makes and the assignment, as one may after a call
    that is written out. It can be used again and again.
    """
    return map(mutex.acquire, repeat(wait))


@contextmanager
def at_once(mutex: threading.Lock) -> Generator[None]:
    """`with mutex`, but if that is taken it raises WouldBlock."""
    is_ours = False
    try:
        for is_ours in attempts(mutex, wait=False):  # noqa: B007
            break
        if not is_ours:
            raise WouldBlock
        yield
    finally:
        if is_ours:
            mutex.release()
