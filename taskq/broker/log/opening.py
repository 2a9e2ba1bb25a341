"""Opening a partition's head: recovering the log if it can't be trusted, repairing it if its last fsync failed."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence

from attrs import evolve

from taskq.broker.log import names
from taskq.broker.log.failures import is_out_of_files, storage_error
from taskq.broker.log.files import Files, check_written
from taskq.broker.log.head import HEAD_BYTES, NOTICE, RECOVERIES, SYNCED, Head, HeadState, Notice
from taskq.broker.log.locks import close_lockable, lock, open_lockable, unlock
from taskq.broker.log.recovery import keep_report, recover, remove_segment, segment_bases
from taskq.broker.log.repair import repair
from taskq.errors import BrokerUnavailable, TopicNotFound

_log = logging.getLogger("taskq.log")


def open_head(files: Files, directory: str, name: str, recovered: Callable[[int], Sequence[str]]) -> tuple[int, Head]:
    """Open the head of the partition in `directory`: (its descriptor, which carries the append lock; the head).

    `recovered(end)` is called under the lock if the log's end had to be found anew; see Partition. Raises
    TopicNotFound, BrokerUnavailable, StorageFull or StorageError.
    """
    try:
        head_fd = open_lockable(files, names.head(directory), create=True)
    except FileNotFoundError:
        raise TopicNotFound(f"{name}: its directory {directory} is gone; was the topic deleted?") from None
    except OSError as error:
        if is_out_of_files(error):
            raise storage_error(name, directory, error) from error
        raise BrokerUnavailable(f"{name}: can't open {names.head(directory)}: {error.strerror}") from error
    try:
        lock(head_fd)
        head = _map(files, directory, head_fd)
        if not head.is_valid():
            _recover(files, directory, name, head, recovered)
        elif head.words[NOTICE] & Notice.DELETED:
            raise TopicNotFound(f"{name}: the topic has been deleted")
        elif head.words[NOTICE] & Notice.FAILED:
            _repair(files, directory, name, head)
        unlock(head_fd)
    except BaseException as error:
        close_lockable(files, head_fd)
        if isinstance(error, FileNotFoundError):
            raise TopicNotFound(f"{name}: the topic was deleted while it was being opened") from None
        if isinstance(error, OSError):
            raise storage_error(name, directory, error) from error
        raise
    return head_fd, head


def _map(files: Files, directory: str, head_fd: int) -> Head:
    if files.size(head_fd) < HEAD_BYTES:
        # Written, not only made longer: a store to mapped memory for which the disk has no room is a SIGBUS.
        empty = bytes(HEAD_BYTES)
        check_written(files.pwrite(head_fd, empty, 0), empty)
    mapped_fd = files.open(names.head(directory))  # another one than what is locked: see locks.py
    try:
        if files.identity(mapped_fd) != files.identity(head_fd):
            raise FileNotFoundError  # the topic has been deleted, and made anew, since the other was opened
        return Head(files.map_shared(mapped_fd, HEAD_BYTES), files.boot_id())
    finally:
        files.close(mapped_fd)


def change_head(files: Files, directory: str, change: Callable[[Head], None]) -> None:
    """Call `change`, under the append lock, with the head of a partition, if anybody can have it open."""
    try:
        head_fd = open_lockable(files, names.head(directory))
    except FileNotFoundError:
        return
    try:
        lock(head_fd)
        if files.size(head_fd) >= HEAD_BYTES:
            head = _map(files, directory, head_fd)
            if head.is_valid():
                change(head)
    finally:
        close_lockable(files, head_fd)


def _recover(files: Files, directory: str, name: str, head: Head, recovered: Callable[[int], Sequence[str]]) -> None:
    report = recover(files, directory)
    report = evolve(report, committed=tuple(recovered(report.state.next_offset)))
    head.words[RECOVERIES] += 1
    head.reset(report.state, report.times, synced=report.state.next_offset)
    keep_report(files, name, report)


def _repair(files: Files, directory: str, name: str, head: Head) -> None:
    if head.is_interrupted:
        clean_up(files, directory, name, head, head.state())
    report = repair(files, directory, head.state(), head.words[SYNCED])
    head.set_times(report.times)
    head.words[NOTICE] &= ~Notice.FAILED
    head.words[RECOVERIES] += 1
    head.republish(report.state)
    head.words[SYNCED] = report.state.next_offset
    keep_report(files, name, report)


def clean_up(files: Files, directory: str, name: str, head: Head, state: HeadState) -> None:
    """Cut what a writer left that died while appending, and remove the segment that one was about to begin.

    Call under the append lock.
    """
    for base in segment_bases(files, directory):
        if base > state.segment_base:
            remove_segment(files, directory, base)
    log_fd = files.open(names.log(directory, state.segment_base), create=True)
    try:
        excess = files.size(log_fd) - state.position
        cut_tail(files, log_fd, head, state.position)
    finally:
        files.close(log_fd)
    _log.warning("%s: a writer died while appending; cut %d bytes it left", name, excess)


def cut_tail(files: Files, log_fd: int, head: Head, position: int) -> None:
    """Cut what an append left past `position`, for good: after a power cut it must not stand in the place of what is
    appended next. Call under the append lock.
    """
    files.truncate(log_fd, position)
    try:
        files.sync(log_fd)
    except OSError as error:  # whatever it says, a full disk too: it is not tried again
        head.words[NOTICE] |= Notice.FAILED
        raise OSError(errno.EIO, f"fsync failed: {error.strerror}", error.filename) from error
    head.abandon()
