"""What a group keeps of a partition, in one small file: the lease, who holds it, and the committed offset.

    bytes 0-511      owner's member id, UTF-8, zero-padded; empty when the lease was given up in order
    bytes 512-       three slots of SLOT_BYTES each:
        crc          uint32   CRC32C of the rest, up to the end of the metadata
        sequence     int64    counts commits; the sound slot with the higher one holds
        offset       int64
        end          int64    of the log when this was committed: what the metadata says is about offsets below it
        length       uint32   of the metadata
        metadata

A commit is not synced: that would cost more than the work it speaks of. Every COMMITS_UNSYNCED_MAX it is, and when a
lease is taken; the slot that is on stable storage then is not written to until the next one is. The commits between
go to the other two in turn, so that a process that dies in the middle of one leaves the one before, and a power cut,
which may tear both, the one that was synced. The flock on the file is the lease: it is free the moment its holder is
dead.
"""

from __future__ import annotations

from contextlib import suppress
from struct import Struct
from typing import NamedTuple

from taskq.broker.log import names
from taskq.broker.log.batch import crc32c
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import Files, check_written
from taskq.broker.log.locks import close_lockable, open_lockable, try_lock
from taskq.broker.port import COMMIT_METADATA_BYTES_MAX, Committed
from taskq.config import check_group
from taskq.errors import ConfigError

OWNER_BYTES = 512
_CRC = Struct(">I")
_BODY = Struct(">qqqI")
SLOT_BYTES = 4608
SLOT_POSITIONS = tuple(OWNER_BYTES + SLOT_BYTES * index for index in range(3))
FILE_BYTES = OWNER_BYTES + SLOT_BYTES * len(SLOT_POSITIONS)

COMMITS_UNSYNCED_MAX = 64
"""How many commits a power cut may take back. At ten a second, six seconds of work that is done again."""

assert _CRC.size + _BODY.size + COMMIT_METADATA_BYTES_MAX <= SLOT_BYTES


def read(raw: bytes) -> tuple[str, Committed | None, int]:
    """Take a file's bytes apart: (owner or "", what is committed or None, sequence of that commit)."""
    holding = max(_slots(raw), default=None)
    return (_owner(raw), holding.committed, holding.sequence) if holding else (_owner(raw), None, 0)


def _owner(raw: bytes) -> str:
    return raw[:OWNER_BYTES].rstrip(b"\0").decode(errors="replace")


class _Slot(NamedTuple):
    """A slot that is sound. The greatest one holds."""

    sequence: int
    position: int
    end: int
    committed: Committed

    def is_beyond(self, end: int) -> bool:
        """Whether it may speak of records at or past `end`."""
        return self.committed.offset > end or (bool(self.committed.metadata) and self.end > end)


def _slots(raw: bytes) -> list[_Slot]:
    return [found for position in SLOT_POSITIONS if (found := _read_slot(raw, position)) is not None]


def _read_slot(raw: bytes, position: int) -> _Slot | None:
    slot = raw[position : position + SLOT_BYTES]
    if len(slot) < _CRC.size + _BODY.size:
        return None
    sequence, offset, end, length = _BODY.unpack_from(slot, _CRC.size)
    stop = _CRC.size + _BODY.size + length
    if sequence < 1 or stop > len(slot) or crc32c(slot[_CRC.size : stop]) != _CRC.unpack_from(slot)[0]:
        return None
    return _Slot(sequence, position, end, Committed(offset, slot[stop - length : stop]))


def encode_slot(sequence: int, committed: Committed, end: int) -> bytes:
    """The bytes of the `sequence`-th commit, as the module docstring lays them out."""
    body = _BODY.pack(sequence, committed.offset, end, len(committed.metadata)) + committed.metadata
    return _CRC.pack(crc32c(body)) + body


class Lease:
    """A lease that is held. Not thread-safe."""

    __slots__ = ("_durable", "_fd", "_files", "_latest", "_path", "_sequence", "_unsynced", "committed")

    def __init__(self, files: Files, fd: int, path: str, holding: _Slot | None) -> None:
        self._files = files
        self._fd = fd
        self._path = path
        self._sequence = holding.sequence if holding else 0
        self._durable = self._latest = holding.position if holding else SLOT_POSITIONS[0]
        self._unsynced = 0
        self.committed = holding.committed if holding else None

    @classmethod
    def take(cls, files: Files, root: str, group: str, topic: str, number: int, owner: str) -> Lease | None:
        """Take the lease if nobody has it."""
        path = names.lease(root, group, topic, number)
        try:
            fd = open_lockable(files, path, create=True)
        except FileNotFoundError:
            files.makedirs(f"{names.group_topics(root, group)}/{topic}")
            fd = open_lockable(files, path, create=True)
        lease: Lease | None = None
        try:
            if try_lock(fd):
                raw = files.pread(fd, FILE_BYTES, 0)
                if len(raw) < FILE_BYTES:  # written out now: a commit on a full disk must only overwrite
                    _sync_names(files, root, path)
                    _write(files, fd, bytes(FILE_BYTES - len(raw)), len(raw))
                files.pwrite(fd, owner.encode()[:OWNER_BYTES].ljust(OWNER_BYTES, b"\0"), 0)
                holding = _write_again(files, fd, raw)
                files.sync(fd)
                lease = cls(files, fd, path, holding)
        except OSError as error:
            raise storage_error(f"the lease of group {group} on {topic}/{number}", path, error) from error
        finally:
            if lease is None:  # whatever ended it
                close_lockable(files, fd)
        return lease

    def commit(self, committed: Committed, end: int) -> None:
        """Store it; the log ends at `end` now.

        Raises StorageFull or StorageError; then what was committed before still holds.
        """
        position = next(one for one in SLOT_POSITIONS if one not in (self._durable, self._latest))
        try:
            _write(self._files, self._fd, encode_slot(self._sequence + 1, committed, end), position)
            self._unsynced += 1
            if self._unsynced >= COMMITS_UNSYNCED_MAX:
                self._unsynced = 0
                self._files.sync(self._fd)
                self._durable = position
        except OSError as error:
            raise storage_error("a commit", self._path, error) from error
        self._sequence += 1
        self._latest = position
        self.committed = committed

    def release(self) -> None:
        """Give the lease up in order: the file says that nobody has it."""
        with suppress(OSError):  # it is free all the same; who takes it next will think that its holder died
            self._files.pwrite(self._fd, b"\0" * OWNER_BYTES, 0)
        close_lockable(self._files, self._fd)


def _write_again(files: Files, fd: int, raw: bytes) -> _Slot | None:
    """Write what holds once more, over the oldest slot: an fsync of the holder before may have failed, and the system
    would not write again what it takes for written. Returns the slot that holds now; None if nothing was committed.
    """
    slots = _slots(raw)
    if not slots:
        return None
    sequences = {slot.position: slot.sequence for slot in slots}
    position = min(SLOT_POSITIONS, key=lambda one: sequences.get(one, 0))
    sequence, _, end, committed = max(slots)
    _write(files, fd, encode_slot(sequence + 1, committed, end), position)
    return _Slot(sequence + 1, position, end, committed)


def _sync_names(files: Files, root: str, path: str) -> None:
    """Make the name of a new file durable, and those of the directories above it."""
    while path != names.groups(root):
        path = path.rpartition("/")[0]
        files.sync_directory(path)


def _write(files: Files, fd: int, data: bytes, position: int) -> None:
    check_written(files.pwrite(fd, data, position), data)


def group_names(files: Files, root: str) -> list[str]:
    """Of all groups there are, sorted. What else is among them is somebody else's, and no group."""
    return [name for name in sorted(files.listdir(names.groups(root))) if _is_group(files, root, name)]


def _is_group(files: Files, root: str, name: str) -> bool:
    try:
        files.listdir(f"{names.groups(root)}/{check_group(name)}")
    except (ConfigError, FileNotFoundError, NotADirectoryError):
        return False
    return True


def forget_beyond(files: Files, root: str, topic: str, number: int, end: int) -> list[str]:
    """A partition's log was recovered after a reboot and ends at `end`: bring what groups committed in line with it.

    A commit may have outlived the records it speaks of. New ones get their offsets, and must not count as finished: so
    offsets go back to `end`, and what is said of those above is dropped if it may speak of records that are gone, which
    may run some again. Returns what was changed, in words. Before anybody publishes to the log or takes a lease.
    """
    changed: list[str] = []
    for group in group_names(files, root):
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

    Each write is synced before the next, so that one slot is always sound. Those that do not hold must go as well if
    they are beyond the end: should the others be torn by a later power cut, they would be back.
    """
    slots = sorted(_slots(files.pread(fd, FILE_BYTES, 0)), reverse=True)
    beyond = [slot for slot in slots if slot.is_beyond(end)]
    if not beyond:
        return ""
    committed, what = slots[0].committed, ""
    if slots[0] in beyond:
        what = f"its offset {committed.offset}" if committed.offset > end else "what had finished out of order"
        committed = Committed(min(committed.offset, end))
    free = [position for position in SLOT_POSITIONS if position != slots[0].position]
    for sequence, position in enumerate([*free, slots[0].position], slots[0].sequence + 1):
        _write(files, fd, encode_slot(sequence, committed, end), position)
        files.sync(fd)
    return what


def peek(files: Files, root: str, group: str, topic: str, number: int) -> tuple[str, Committed | None]:
    """Owner and commit of a partition as anybody may see them. A dead holder is still named as the owner."""
    owner, committed, _ = read(_read_some(files, names.lease(root, group, topic, number), FILE_BYTES))
    return owner, committed


def owner(files: Files, root: str, group: str, topic: str, number: int) -> str:
    """The owner alone, in a third of the time."""
    return _owner(_read_some(files, names.lease(root, group, topic, number), OWNER_BYTES))


def _read_some(files: Files, path: str, count: int) -> bytes:
    """The first `count` bytes, or as many as there are."""
    try:
        fd = files.open(path, write=False)
    except FileNotFoundError:
        return b""
    try:
        return files.pread(fd, count, 0)
    finally:
        files.close(fd)
