"""What a group keeps of a partition, in one small file: the lease, who holds it, and the committed offset.

    bytes 0-511      owner's member id, UTF-8, zero-padded; empty when the lease was given up in order
    bytes 512-       two slots of SLOT_BYTES each:
        crc          uint32   CRC32C of the rest, up to the end of the metadata
        sequence     int64    counts commits; the sound slot with the higher one holds
        offset       int64
        end          int64    of the log when this was committed: what the metadata says is about offsets below it
        length       uint32   of the metadata
        metadata

A commit writes the slot that does not hold, so a crash in the middle leaves the other. The flock on the file is the
lease: it is free the moment its holder is dead.
"""

from __future__ import annotations

import errno
import os
from struct import Struct

from taskq.broker.log import names
from taskq.broker.log.batch import crc32c
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import Files
from taskq.broker.log.locks import close_lockable, open_lockable, try_lock
from taskq.broker.port import COMMIT_METADATA_BYTES_MAX, Committed

OWNER_BYTES = 512
_CRC = Struct(">I")
_BODY = Struct(">qqqI")
SLOT_BYTES = 4608
FILE_BYTES = OWNER_BYTES + 2 * SLOT_BYTES

assert _CRC.size + _BODY.size + COMMIT_METADATA_BYTES_MAX <= SLOT_BYTES


def read(raw: bytes) -> tuple[str, Committed | None, int]:
    """Take a file's bytes apart: (owner or "", what is committed or None, sequence of that commit)."""
    owner = raw[:OWNER_BYTES].rstrip(b"\0").decode(errors="replace")
    best, best_sequence = None, 0
    for found in _slots(raw):
        if found[1] > best_sequence:
            best, best_sequence = found
    return owner, best, best_sequence


def _slots(raw: bytes) -> list[tuple[Committed, int]]:
    """Those that are sound."""
    both = (raw[OWNER_BYTES : OWNER_BYTES + SLOT_BYTES], raw[OWNER_BYTES + SLOT_BYTES : FILE_BYTES])
    return [found for slot in both if (found := _read_slot(slot)) is not None]


def _read_slot(slot: bytes) -> tuple[Committed, int] | None:
    if len(slot) < _CRC.size + _BODY.size:
        return None
    sequence, offset, _, length = _BODY.unpack_from(slot, _CRC.size)
    stop = _CRC.size + _BODY.size + length
    if stop > len(slot) or crc32c(slot[_CRC.size : stop]) != _CRC.unpack_from(slot)[0]:
        return None
    return Committed(offset, slot[stop - length : stop]), sequence


def _end_of(raw: bytes, sequence: int) -> int:
    """Where the log ended when the commit of this number was made."""
    end: int = _BODY.unpack_from(raw, _slot_position(sequence) + _CRC.size)[2]
    return end


def encode_slot(sequence: int, committed: Committed, end: int) -> bytes:
    """The bytes of the `sequence`-th commit, as the module docstring lays them out."""
    body = _BODY.pack(sequence, committed.offset, end, len(committed.metadata)) + committed.metadata
    return _CRC.pack(crc32c(body)) + body


def _slot_position(sequence: int) -> int:
    return OWNER_BYTES + SLOT_BYTES * (sequence & 1)


class Lease:
    """A lease that is held. Not thread-safe."""

    __slots__ = ("_fd", "_files", "_path", "_sequence", "committed")

    def __init__(self, files: Files, fd: int, path: str, sequence: int, committed: Committed | None) -> None:
        self._files = files
        self._fd = fd
        self._path = path
        self._sequence = sequence
        self.committed = committed

    @classmethod
    def take(cls, files: Files, root: str, group: str, topic: str, number: int, owner: str) -> Lease | None:
        """Take the lease if nobody has it."""
        path = names.lease(root, group, topic, number)
        try:
            fd = open_lockable(files, path, create=True)
        except FileNotFoundError:
            files.makedirs(f"{names.group_topics(root, group)}/{topic}")
            fd = open_lockable(files, path, create=True)
        try:
            if not try_lock(fd):
                close_lockable(files, fd)
                return None
            raw = files.pread(fd, FILE_BYTES, 0)
            if len(raw) < FILE_BYTES:  # written out now: a commit on a full disk must only overwrite
                _write(files, fd, bytes(FILE_BYTES - len(raw)), len(raw))
            files.pwrite(fd, owner.encode()[:OWNER_BYTES].ljust(OWNER_BYTES, b"\0"), 0)
        except OSError as error:
            close_lockable(files, fd)
            raise storage_error(f"the lease of group {group} on {topic}/{number}", path, error) from error
        _, committed, sequence = read(raw)
        return cls(files, fd, path, sequence, committed)

    def commit(self, committed: Committed, end: int) -> None:
        """Store it; the log ends at `end` now.

        Raises StorageFull or StorageError; then what was committed before still holds.
        """
        sequence = self._sequence + 1
        try:
            _write(self._files, self._fd, encode_slot(sequence, committed, end), _slot_position(sequence))
        except OSError as error:
            raise storage_error("a commit", self._path, error) from error
        self._sequence = sequence
        self.committed = committed

    def release(self) -> None:
        """Give the lease up in order: the file says that nobody has it."""
        self._files.pwrite(self._fd, b"\0" * OWNER_BYTES, 0)
        close_lockable(self._files, self._fd)


def _write(files: Files, fd: int, data: bytes, position: int) -> None:
    if files.pwrite(fd, data, position) != len(data):  # a disk that is full may take a part
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def forget_beyond(files: Files, root: str, topic: str, number: int, end: int) -> list[str]:
    """A partition's log was recovered after a reboot and ends at `end`: bring what groups committed in line with it.

    A commit may have outlived the records it speaks of. New ones get their offsets, and must not count as finished: so
    offsets go back to `end`, and what is said of those above is dropped if it may speak of records that are gone, which
    may run some again. Returns what was changed, in words. Before anybody publishes to the log or takes a lease.
    """
    changed: list[str] = []
    for group in sorted(files.listdir(names.groups(root))):
        path = names.lease(root, group, topic, number)
        try:
            fd = files.open(path)
        except FileNotFoundError:
            continue
        try:
            what = _forget_in(files, fd, end)
        finally:
            files.close(fd)
        if what:
            changed.append(f"group {group} had committed more than there is: {what} goes back to {end} or below")
    return changed


def _forget_in(files: Files, fd: int, end: int) -> str:
    """Bring one group's file in line. Returns what was changed, in words.

    Each write is synced before the next, so that one slot is always sound. The slot that does not hold must go as well
    if it is beyond the end: should both be torn or lost by a later power cut, it would be back.
    """
    raw = files.pread(fd, FILE_BYTES, 0)
    _, committed, sequence = read(raw)
    if committed is None:
        return ""
    beyond = {found[1] for found in _slots(raw) if _is_beyond(raw, *found, end)}
    if not beyond:
        return ""
    if sequence in beyond:
        kept = Committed(min(committed.offset, end))
        what = f"its offset {committed.offset}" if committed.offset > end else "what had finished out of order"
    else:
        kept, what = committed, ""
    for number in (sequence + 1, sequence + 2):
        _write(files, fd, encode_slot(number, kept, end), _slot_position(number))
        files.sync(fd)
    return what


def _is_beyond(raw: bytes, committed: Committed, sequence: int, end: int) -> bool:
    return committed.offset > end or (bool(committed.metadata) and _end_of(raw, sequence) > end)


def peek(files: Files, root: str, group: str, topic: str, number: int) -> tuple[str, Committed | None]:
    """Owner and commit of a partition as anybody may see them. A dead holder is still named as the owner."""
    try:
        fd = files.open(names.lease(root, group, topic, number), write=False)
    except FileNotFoundError:
        return "", None
    try:
        owner, committed, _ = read(files.pread(fd, FILE_BYTES, 0))
        return owner, committed
    finally:
        files.close(fd)
