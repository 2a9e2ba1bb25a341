"""flock, and what it does and does not do. The only module that imports `fcntl`.

A flock belongs to the open file description: the kernel frees it when the last descriptor of that description is
closed, so when its process dies, however it dies, and never sooner. That is why there is no time-out to tune and no
stalled holder that another overtakes by mistake.

What follows from "open file description", and who takes care of it:

- Two `open` calls in one process exclude each other as two processes do, but threads that share one descriptor do
  not: every descriptor that is locked here is guarded by a `threading.Lock` beside it.
- A forked child shares its parent's descriptions, and so its parent's locks: both would believe they hold them. A
  broker must not be used across `fork`; `taskq.app` drops it in the child.
- Network file systems differ. The data directory must be on a local one.
"""

from __future__ import annotations

import fcntl

EXCLUSIVE = fcntl.LOCK_EX
TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
UNLOCK = fcntl.LOCK_UN
flock = fcntl.flock
"""The bare call, for the one place where a frame more would be felt (partition.py). Raises BlockingIOError for TRY."""


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
