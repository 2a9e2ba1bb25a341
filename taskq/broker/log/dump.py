"""Going through what a log holds, batch by batch, for people: `taskq log dump`. Reads only, takes no lock."""

from __future__ import annotations

import os
from collections.abc import Callable

from attrs import frozen

from taskq.broker.log import names
from taskq.broker.log.batch import HEADER_BYTES, BadBatch, BatchHeader, decode_batches
from taskq.broker.log.damage import walk
from taskq.broker.log.files import Files, read_or_empty
from taskq.broker.log.index import begin
from taskq.broker.log.view import HeadKind, View, take
from taskq.broker.port import Lost, Record
from taskq.errors import ConfigError, CorruptLog

_BASE_OFFSET_BYTES = 8


@frozen
class DumpedBatch:
    """A sound batch, and where it is."""

    file: str
    position: int
    header: BatchHeader
    records: list[Record]
    """Empty unless they were asked for."""


@frozen
class Dump:
    """What to go through, and what to do with it."""

    files: Files
    each: Callable[[DumpedBatch], object]
    lost: Callable[[Lost], object] | None
    """Called for what is damaged, which is passed over. None: CorruptLog is raised."""
    offset: int = 0
    """Batches and records below it are left out."""
    records: bool = False

    def run(self, path: str) -> None:
        """Go through a data directory, a topic's or a partition's, or one file. Raises ConfigError, CorruptLog."""
        path = os.path.normpath(path)
        try:
            entries = sorted(self.files.listdir(path), key=lambda name: (name.zfill(20), name))
        except NotADirectoryError:
            self._file(path)
            return
        except FileNotFoundError:
            raise ConfigError(
                f"there is no {path}; name a data directory, a topic's or a partition's, or a file"
            ) from None
        if "taskq.json" in entries or "topics" in entries:
            for topic in sorted(self.files.listdir(names.topics(path))):
                if not topic.endswith("~"):
                    self.run(names.topic(path, topic))
        elif "topic.json" in entries:
            for number in filter(str.isdecimal, entries):
                self.run(f"{path}/{number}")
        elif not entries or any(names.is_partition_file(name) for name in entries):
            view = take(self.files, path)
            for base in view.bases:
                self._segment(view, base)
        else:
            raise ConfigError(
                f"{path} holds nothing of a log; name a data directory, a topic's, a partition's or a file"
            )

    def _file(self, path: str) -> None:
        directory, _, name = path.rpartition("/")
        base = names.log_base_offset(name)
        if base is not None:
            view = take(self.files, directory or ".")
            if base in view.bases:
                self._segment(view, base)
                return
        else:  # what recovery set aside, or a copy under another name
            base = self._first_offset(path)
        self._walk(path, base, View(directory, HeadKind.ABSENT, None, None, (base,), ()))

    def _first_offset(self, path: str) -> int:
        fd = self.files.open(path, write=False)
        try:
            return int.from_bytes(self.files.pread(fd, _BASE_OFFSET_BYTES, 0), "big", signed=True)
        finally:
            self.files.close(fd)

    def _segment(self, view: View, base: int) -> None:
        next_base = view.next_base(base)
        if next_base is not None and next_base <= self.offset:
            return
        path = names.log(view.directory, base)
        try:
            self._walk(path, base, view)
        except FileNotFoundError:
            if base in take(self.files, view.directory).bases:
                raise CorruptLog(path, 0, "the file is listed and can't be opened") from None

    def _walk(self, path: str, base: int, view: View) -> None:
        fd = self.files.open(path, write=False)
        try:
            limit = view.limit(base, self.files.size(fd))
            start = self._start(fd, names.index(view.directory, base), base)

            def each(position: int, header: BatchHeader) -> None:
                if header.next_offset > self.offset:
                    self._batch(fd, path, position, header)

            walk(self.files, fd, path, start, each, self._damaged, limit, view.next_base(base))
        finally:
            self.files.close(fd)

    def _start(self, fd: int, index_path: str, base: int) -> tuple[int, int]:
        """Where to begin, by the index: (byte, the offset due there)."""
        index = read_or_empty(self.files, index_path) if self.offset > base else b""
        return begin(self.files, fd, index, base, self.offset) or (0, base)

    def _damaged(self, lost: Lost) -> None:
        if self.lost is None:
            raise CorruptLog(lost.file, lost.position, lost.reason)
        if lost.next_offset is None or lost.next_offset > self.offset:
            self.lost(lost)

    def _batch(self, fd: int, path: str, position: int, header: BatchHeader) -> None:
        records: list[Record] = []
        if self.records and header.size > HEADER_BYTES:
            raw = self.files.pread(fd, header.size, position)
            try:
                first, after = header.base_offset, header.next_offset
                records = decode_batches(raw, 0, max(first, self.offset), after, 1 << 30, due=first)[0]
            except BadBatch as bad:
                self._damaged(Lost(path, position, header.size, header.base_offset, header.next_offset, bad.reason))
                return
        self.each(DumpedBatch(path, position, header, records))
