"""A place in a partition to read on from: segment, position, offset. Takes no lock and never reads past the head.

Segments may vanish under a reader: retention removes the oldest, compaction puts one in the place of several. Whoever
has one open reads on in it; the next one is looked for by name, and if it is gone, a reader looks again where its
offset is now. Only what that does not explain is damage.
"""

from __future__ import annotations

from collections.abc import Callable

from taskq.broker.log import names
from taskq.broker.log.batch import HEADER_BYTES, BadBatch, BatchHeader, decode_batches, read_header
from taskq.broker.log.damage import after_damage
from taskq.broker.log.files import Files
from taskq.broker.log.head import RECOVERIES, Head
from taskq.broker.log.lookup import locate
from taskq.broker.log.recovery import segment_bases
from taskq.broker.log.scan import sound_batch
from taskq.broker.port import Lost, Record
from taskq.errors import CorruptLog, OffsetOutOfRange

_RECORDS_MAX_DEFAULT = 1 << 30
_TRIES = 100
"""How often to look again when the segment that was listed is gone. Each time it must have been another one."""

_READ_BYTES_MIN = 16 * 1024
"""What is read at once when little comes; it grows as far as it is used. A large buffer for every small read would cost
more than the read itself."""


class Cursor:
    """Reads one partition in order. Not thread-safe. Opens nothing until the first read."""

    __slots__ = (
        "_directory",
        "_due",
        "_fd",
        "_files",
        "_head",
        "_is_strict",
        "_position",
        "_recoveries",
        "_segment_base",
        "_sought",
        "_want",
        "offset",
        "skipped",
    )

    def __init__(self, files: Files, directory: str, head: Head, offset: int, *, is_strict: bool = False) -> None:
        self.offset = offset
        """The offset of the next record that `read` returns, if there is one."""
        self.skipped = 0
        """How many offsets were passed over because the log begins after them. Whoever counts them sets it back."""
        self._is_strict = is_strict
        self._files = files
        self._directory = directory
        self._head = head
        self._fd = self._segment_base = self._position = self._sought = -1
        self._due = offset
        """With which offset the batch at `_position` must begin: below `offset` if that was sought, and lies in it."""
        self._recoveries: int = head.words[RECOVERIES]
        """How often the log had been repaired when our place in it was looked up."""
        self._want = _READ_BYTES_MIN

    def read(self, bytes_max: int, records_max: int = _RECORDS_MAX_DEFAULT) -> list[Record]:
        """The next records: whole batches, at least one if there is one, up to about the two limits.

        Raises CorruptLog at a damaged batch, and again at every further call: it is never passed over.
        """
        while True:
            try:
                return self._read(bytes_max, records_max)
            except CorruptLog:
                if self._recoveries == self._head.words[RECOVERIES]:
                    raise
                # A repair has written the log anew, and where a batch began that was lost none may begin now.
                self.close()  # to look it up again

    def _read(self, bytes_max: int, records_max: int) -> list[Record]:
        # What was there a moment ago may have been compacted, since there is something newer now: look again.
        while self.offset < (end := self._head.next_offset()):
            records = self._read_to(end, bytes_max, records_max)
            if records:
                return records
        return []

    def _read_to(self, end: int, bytes_max: int, records_max: int) -> list[Record]:
        """The next records below `end`; none if all of them have been removed."""
        if self._fd < 0:
            self._seek()
        want = min(self._want, max(bytes_max, HEADER_BYTES))
        while self.offset < end:
            buffer = self._files.pread(self._fd, want, self._position)
            if len(buffer) < HEADER_BYTES:
                self._next_segment(len(buffer))
                continue
            try:
                records, consumed, next_offset = decode_batches(buffer, 0, self.offset, end, records_max, due=self._due)
            except BadBatch as bad:
                raise self._damaged(bad.position, bad.reason) from None
            if not consumed:
                want = self._size_of_next(buffer)
                continue
            self._position += consumed
            self.offset = self._due = next_offset
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

    def _size_of_next(self, buffer: bytes) -> int:
        """Bytes of the batch that `buffer` holds the beginning of, which are all there."""
        try:
            size = read_header(buffer, 0).size
        except BadBatch as bad:
            raise self._damaged(bad.position, bad.reason) from None
        there = self._files.size(self._fd) - self._position
        if there < size:
            raise self._damaged(0, f"a batch of {size} bytes of which {there} are there")
        return size

    def _seek(self) -> None:
        """Open the segment that holds `offset`, and find the batch that does."""
        self._recoveries = self._head.words[RECOVERIES]
        for _ in range(_TRIES):
            try:
                self._open_at_offset()
            except FileNotFoundError:
                continue
            try:
                state = self._head.state()
                self._position, self._due = locate(
                    self._files, self._directory, self._fd, self._segment_base, self.offset, state
                )
            except BadBatch as bad:
                damaged = CorruptLog(names.log(self._directory, self._segment_base), bad.position, bad.reason)
                self.close()  # to look again from the beginning, should it be read again
                raise damaged from None
            return
        raise CorruptLog(self._directory, 0, f"the segment of offset {self.offset} is listed and can't be opened")

    def _open_at_offset(self) -> None:
        """Open the segment whose offsets `offset` is among. Raises FileNotFoundError if it has just been removed."""
        bases = segment_bases(self._files, self._directory)
        # After the listing: what it lacks because retention has removed it is below the start by now.
        start = self._head.state().start_offset
        if self.offset < start:
            if self._is_strict:
                raise OffsetOutOfRange(
                    f"{self._directory}: offset {self.offset} is due, but the log begins at {start}: what was before "
                    'that has been removed. offset_reset = "earliest" goes on from there'
                )
            self.skipped += start - self.offset
            self.offset = start
        below = [base for base in bases if base <= self.offset]
        if not below:
            raise CorruptLog(self._directory, 0, f"no segment holds offset {self.offset}")
        self._open(below[-1])

    def _open(self, base: int) -> None:
        fd = self._files.open(names.log(self._directory, base), write=False)
        self.close()
        self._fd, self._segment_base = fd, base
        self._position, self._due = 0, base

    def _next_segment(self, leftover: int) -> None:
        """This segment is read to its end and the log goes on: in the segment that begins here."""
        if leftover:
            raise self._damaged(0, f"{leftover} bytes after the last batch, too few for another")
        if self.offset != self._segment_base or self._position:
            try:
                self._open(self.offset)
            except FileNotFoundError:
                pass
            else:
                return
        if self._sought == self.offset and self._head.state().start_offset <= self.offset:
            what = "the segment is empty" if not self._position else "the file ends"
            raise self._damaged(0, f"{what}; the log goes on to offset {self._head.next_offset()}")
        self._seek()  # in what is there now; if that ends here too, it is damage
        self._sought = self.offset

    def _damaged(self, position: int, reason: str) -> CorruptLog:
        return CorruptLog(names.log(self._directory, self._segment_base), max(0, self._position) + position, reason)


class SkippingCursor(Cursor):
    """A cursor that passes over damage, and tells `lost` what that is."""

    __slots__ = ("_lost",)

    def __init__(self, files: Files, directory: str, head: Head, offset: int, lost: Callable[[Lost], object]) -> None:
        super().__init__(files, directory, head, offset)
        self._lost = lost

    def read(self, bytes_max: int, records_max: int = _RECORDS_MAX_DEFAULT) -> list[Record]:
        """The next records that can be read. Never raises CorruptLog."""
        while True:
            try:
                return super().read(bytes_max, records_max)
            except CorruptLog as damaged:
                self._pass_over(damaged.reason)

    def _pass_over(self, reason: str) -> None:
        """Go to the next batch that can be read, in this segment or a later one."""
        state = self._head.state()
        if self._fd < 0:
            try:
                self._open_at_offset()  # at its first batch: the index did not help
            except FileNotFoundError:
                return  # just removed: look again
            except CorruptLog:
                self._pass_over_segment(state.next_offset, 0, reason)
                return
        end: int | None = state.next_offset
        limit = state.position
        if self._segment_base != state.segment_base:
            limit = self._files.size(self._fd)
            later = [base for base in segment_bases(self._files, self._directory) if base > self._segment_base]
            end = later[0] if later else None
        if not self._pass_over_batch(end, limit, reason):
            self._pass_over_segment(state.next_offset, limit, reason)

    def _pass_over_batch(self, end: int | None, limit: int, reason: str) -> bool:
        """Go to the next batch of this segment that can be read; false if there is none.

        The segment ends at byte `limit`, where the log goes on with offset `end`, if that is known.
        """
        while self._position < limit:
            header = sound_batch(self._files, self._fd, self._position, limit)
            if header is None or header.base_offset != self._due:
                found = after_damage(self._files, self._fd, self._position, self._due, limit, end)
                if found is None:
                    return False
                position, following = found
                is_lost = following.base_offset > self.offset
                if is_lost:
                    self._lose(position - self._position, following.base_offset, reason)
                self._position, self._due = position, following.base_offset
                if is_lost:
                    return True
            elif header.next_offset > self.offset and self._can_be_read(header):
                return True
            else:
                self._position, self._due = self._position + header.size, header.next_offset
        return False

    def _can_be_read(self, header: BatchHeader) -> bool:
        """Whether there are records for us in the sound batch at our position; else we stand after them."""
        raw = self._files.pread(self._fd, header.size, self._position)
        try:
            if decode_batches(raw, 0, self.offset, header.next_offset, _RECORDS_MAX_DEFAULT, due=self._due)[0]:
                return True
            self.offset = header.next_offset
        except BadBatch as bad:
            self._lose(header.size, header.next_offset, bad.reason)
        return False

    def _pass_over_segment(self, end: int, limit: int, reason: str) -> None:
        """Nothing more can be read here: go to the next segment that is there."""
        later = [
            base
            for base in segment_bases(self._files, self._directory)
            if self.offset <= base < end and (self._fd < 0 or base != self._segment_base)
        ]
        rest = max(0, limit - self._position) if self._fd >= 0 else 0
        next_offset = later[0] if later else end
        if next_offset > self.offset or rest:
            self._lose(rest, next_offset, reason)
        if later:
            self._open(later[0])
        else:
            self.close()

    def _lose(self, size: int, next_offset: int, reason: str) -> None:
        path = names.log(self._directory, self._segment_base) if self._fd >= 0 else self._directory
        position = self._position if self._fd >= 0 else 0
        self._lost(Lost(path, position, size, self.offset, next_offset, reason))
        self.offset = next_offset
