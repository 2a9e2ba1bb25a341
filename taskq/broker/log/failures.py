"""What the system's errors become: full, or failed."""

from __future__ import annotations

import errno

from taskq.errors import StorageError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def storage_error(what: str, where: str, error: OSError) -> StorageFull | StorageError:
    """The error to raise when `what` (a partition, a topic, a lease) could not be written to `where`."""
    if error.errno in _FULL:
        return StorageFull(f"{what}: {error.strerror}; free space in {where} and try again")
    return StorageError(f"{what}: writing to {where} failed: {error.strerror}")
