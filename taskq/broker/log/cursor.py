"""A place in a partition to read on from: segment, position, offset. Takes no lock and never reads past the head."""

from __future__ import annotations

import logging

from taskq.broker.log import names
from taskq.broker.log.batch import HEADER_BYTES, BadBatch, decode_batches, read_header
from taskq.broker.log.files import Files
from taskq.broker.log.head import Head
from taskq.broker.log.index import find
from taskq.broker.log.recovery import segment_bases
from taskq.broker.port import Record
from taskq.errors import CorruptLog

_log = logging.getLogger("taskq.log")

_RECORDS_MAX_DEFAULT = 1 << 30

_READ_BYTES_MIN = 16 * 1024
"""What is read at once when little comes; it grows as far as it is used. A large buffer for every small read would cost
more than the read itself."""


class Cursor:
    """Reads one partition in order. Not thread-safe. Opens nothing until the first read."""

    __slots__ = ("_directory", "_fd", "_files", "_head", "_position", "_segment_base", "_want", "offset")

    def __init__(self, files: Files, directory: str, head: Head, offset: int) -> None:
        self.offset = offset
        """The offset of the next record that `read` returns, if there is one."""
        self._files = files
        self._directory = directory
        self._head = head
        self._fd = self._segment_base = self._position = -1
        self._want = _READ_BYTES_MIN

    def read(self, bytes_max: int, records_max: int = _RECORDS_MAX_DEFAULT) -> list[Record]:
        """The next records: whole batches, at least one if there is one, up to about the two limits.

        Raises CorruptLog at a damaged batch, and again at every further call: it is never passed over.
        """
        end = self._head.next_offset()
        if self.offset >= end:
            return []
        if self._fd < 0:
            self._seek(end)
        want = min(self._want, max(bytes_max, HEADER_BYTES))
        while self.offset < end:
            buffer = self._files.pread(self._fd, want, self._position)
            if len(buffer) < HEADER_BYTES:
                self._next_segment(len(buffer))
                continue
            try:
                records, consumed, next_offset = decode_batches(buffer, 0, self.offset, end, records_max)
            except BadBatch as bad:
                raise self._damaged(bad.position, bad.reason) from None
            if not consumed:
                want = self._size_of_next(buffer, want)
                continue
            self._position += consumed
            self.offset = next_offset
            if consumed * 2 > want:
                self._want = want * 4
            elif consumed * 8 < want:
                self._want = max(want // 4, _READ_BYTES_MIN)
            if records:
                return records
        return []

    def close(self) -> None:
        if self._fd >= 0:
            self._files.close(self._fd)
            self._fd = -1

    def _size_of_next(self, buffer: bytes, had: int) -> int:
        size = read_header(buffer, 0).size
        if len(buffer) < had:
            raise self._damaged(0, f"a batch of {size} bytes of which {len(buffer)} are there")
        return size

    def _seek(self, end: int) -> None:
        """Open the segment that holds `offset`, and find the batch that does."""
        self.offset = max(self.offset, self._head.state().start_offset)
        below = [base for base in segment_bases(self._files, self._directory) if base <= self.offset]
        if not below:
            raise CorruptLog(self._directory, 0, f"no segment holds offset {self.offset}")
        self._open(below[-1])
        index = self._read_index(below[-1])
        try:
            self._position = find(self._files, self._fd, index, below[-1], self.offset, end)
        except BadBatch as bad:
            damaged = CorruptLog(names.log(self._directory, below[-1]), bad.position, bad.reason)
            self.close()  # to look again from the beginning, should it be read again
            raise damaged from None

    def _open(self, base: int) -> None:
        fd = self._files.open(names.log(self._directory, base), write=False)
        self.close()
        self._fd, self._segment_base, self._position = fd, base, 0

    def _read_index(self, base: int) -> bytes:
        try:
            fd = self._files.open(names.index(self._directory, base), write=False)
        except FileNotFoundError:
            return b""  # it costs a longer scan
        try:
            return self._files.pread(fd, self._files.size(fd), 0)
        finally:
            self._files.close(fd)

    def _next_segment(self, leftover: int) -> None:
        """This segment is read to its end and the log goes on: in the segment that begins here."""
        if leftover:
            raise self._damaged(0, f"{leftover} bytes after the last batch, too few for another")
        if self.offset == self._segment_base and not self._position:
            raise self._damaged(0, "the segment is empty, the log goes on")
        try:
            self._open(self.offset)
        except FileNotFoundError:
            raise self._damaged(0, f"the file ends; the log goes on to offset {self._head.next_offset()}") from None

    def _damaged(self, position: int, reason: str) -> CorruptLog:
        return CorruptLog(names.log(self._directory, self._segment_base), max(0, self._position) + position, reason)
