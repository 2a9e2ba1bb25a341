"""What the system's errors become: full, failed, or out of files."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import ParamSpec, TypeVar

from taskq.errors import BrokerError, BrokerUnavailable, StorageError, StorageFull

_P = ParamSpec("_P")
_T = TypeVar("_T")

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


def documented(what: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """For the port's methods: what the system says comes out of them as one of taskq's errors, `what` being done."""

    def decorate(method: Callable[_P, _T]) -> Callable[_P, _T]:
        @wraps(method)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            try:
                return method(*args, **kwargs)
            except OSError as error:
                where = str(error.filename or "the data directory")
                if is_out_of_files(error) or error.errno in _FULL:
                    raise storage_error(what, where, error) from error
                raise StorageError(f"{what} failed: {error.strerror} ({where})") from error

        return call

    return decorate


def all_documented(port: type[_T]) -> type[_T]:
    """The same for all of a class's own public methods, which say by their names what is being done."""
    for name, method in list(vars(port).items()):
        if isinstance(method, FunctionType) and not name.startswith("_"):
            setattr(port, name, documented(name.replace("_", " "))(method))
    return port
