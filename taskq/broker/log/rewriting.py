"""Writing a segment that has fewer records than the ones it is made of, and yet covers all their offsets."""

from __future__ import annotations

import errno
import os
from contextlib import suppress

from taskq.broker.log.batch import (
    BASE_OFFSET,
    HEADER_BYTES,
    BatchHeader,
    encode_batch,
    encode_filler,
    read_header,
)
from taskq.broker.log.files import Files
from taskq.broker.log.index import IndexBuilder

COMPRESSED = 0x07
CONTROL = 0x20
_WRITE_BYTES = 1024 * 1024


class SegmentWriter:
    """Writes batches to a file, in the order of their offsets. The last one is held back: it may have to be widened."""

    def __init__(self, files: Files, path: str, base: int) -> None:
        self.index = IndexBuilder(base)
        self._files = files
        self._path = path
        self._due = base
        self._held: tuple[BatchHeader, bytes] | None = None
        self._pending = bytearray()
        self._written = 0
        self._fd = files.open(path, create=True)
        files.truncate(self._fd, 0)

    @property
    def size(self) -> int:
        return self._written + len(self._pending)

    def add(self, header: BatchHeader, raw: bytes) -> None:
        """Write a batch. What is missing before it is covered."""
        self._cover(header.base_offset)
        self._hold(header, raw)

    def finish(self, end: int) -> None:
        """Cover what is missing up to offset `end`, and sync it."""
        self._cover(end)
        self._release()
        self._flush()
        self.index.add_time()
        self._files.sync(self._fd)

    def _cover(self, offset: int) -> None:
        missing = offset - self._due
        if not missing:
            return
        if self._held is not None and self._may_widen(self._held[0]):
            header, raw = self._held
            wider = header._replace(last_offset_delta=header.last_offset_delta + missing)
            raw = encode_batch(wider, raw[HEADER_BYTES:])
            self._held = None
        else:
            raw = BASE_OFFSET.pack(self._due) + encode_filler(missing)
        self._hold(read_header(raw, 0), raw)

    @staticmethod
    def _may_widen(header: BatchHeader) -> bool:
        """A producer's batch says by its offsets how many records were sent."""
        return header.producer_id < 0 and not header.attributes & CONTROL

    def _hold(self, header: BatchHeader, raw: bytes) -> None:
        self._release()
        self._held = header, raw
        self._due = header.next_offset

    def _release(self) -> None:
        if self._held is not None:
            header, raw = self._held
            self.index.add(self.size, header)
            self._pending += raw
            self._held = None
            if len(self._pending) >= _WRITE_BYTES:
                self._flush()

    def _flush(self) -> None:
        count = self._files.pwrite(self._fd, bytes(self._pending), self._written)
        if count != len(self._pending):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        self._written += count
        self._pending.clear()

    def close(self) -> None:
        self._files.close(self._fd)

    def discard(self) -> None:
        """Remove what has been written."""
        with suppress(FileNotFoundError):
            self._files.unlink(self._path)
