"""A partition as those see it who only look: where it begins and ends, how large it is, what is in it. No locks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from taskq.broker.log import lookup, names
from taskq.broker.log.cursor import Cursor, SkippingCursor
from taskq.broker.log.files import Files
from taskq.broker.log.head import NOTICE, Head, Notice
from taskq.broker.log.recovery import segment_bases
from taskq.broker.port import Lost, PartitionBounds
from taskq.errors import TopicNotFound


class PartitionView:
    """See the module docstring. What it tells of a topic that has been deleted is how it was."""

    __slots__ = ("_directory", "_files", "_head", "name")

    def __init__(self, files: Files, directory: str, name: str, head: Head) -> None:
        self.name = name
        self._files = files
        self._directory = directory
        self._head = head

    @property
    def head(self) -> Head:
        return self._head

    @property
    def directory(self) -> str:
        return self._directory

    @property
    def is_deleted(self) -> bool:
        """Whether the topic has been deleted. One of the same name is another."""
        return bool(self._head.words[NOTICE] & Notice.DELETED)

    def _gone(self) -> TopicNotFound:
        return TopicNotFound(f"{self.name}: the topic has been deleted")

    def end(self) -> int:
        """The offset the next record will get: all below it can be read."""
        return self._head.next_offset()

    def bounds(self) -> PartitionBounds:
        state = self._head.state()
        return PartitionBounds(state.start_offset, state.next_offset)

    def size_bytes(self) -> int:
        """Bytes of the log's segments on disk."""
        size = 0
        for base in segment_bases(self._files, self._directory):
            with suppress(FileNotFoundError):  # retention has just removed it
                size += self._files.size_of(names.log(self._directory, base))
        return size

    def cursor(self, offset: int, lost: Callable[[Lost], object] | None = None, *, is_strict: bool = False) -> Cursor:
        """A place to read on from. Below the start it is the start; with `is_strict` that is OffsetOutOfRange. With
        `lost` it passes over damage, and says so."""
        if lost is not None:
            return SkippingCursor(self._files, self._directory, self._head, offset, lost)
        return Cursor(self._files, self._directory, self._head, offset, is_strict=is_strict)

    def offset_for(self, timestamp_ms: int) -> int:
        """The earliest offset whose record's timestamp is `timestamp_ms` or later; the end if there is none."""
        return lookup.offset_for(self._files, self._directory, self._head, timestamp_ms)
