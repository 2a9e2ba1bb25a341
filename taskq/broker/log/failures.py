"""What the system's errors become: full, failed, or out of files."""

from __future__ import annotations

import errno
import resource

from taskq.errors import BrokerError, BrokerUnavailable, StorageError, StorageFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_TOO_MANY = (errno.EMFILE, errno.ENFILE)


def is_out_of_files(error: OSError) -> bool:
    """Whether nothing is wrong with the file: this process, or the whole system, may open no more."""
    return error.errno in _TOO_MANY


def storage_error(what: str, where: str, error: OSError) -> BrokerError:
    """The error to raise when `what` (a partition, a topic, a lease) could not be written to `where`."""
    if is_out_of_files(error):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        return BrokerUnavailable(
            f"{what}: too many open files: this process may have {soft}. Raise that with `ulimit -n` or RLIMIT_NOFILE "
            f"(up to {hard} without more rights) or use fewer partitions; nothing is lost, and it works again when "
            "some are closed"
        )
    if error.errno in _FULL:
        return StorageFull(f"{what}: {error.strerror}; free space in {where} and try again")
    return StorageError(f"{what}: writing to {where} failed: {error.strerror}")
