"""The board: a small shared file on which every task leaves its mark, so that a run can be timed from outside.

A task's whole work is one store into this file, the same for every peer: `flags[index] = mark`, well under 0.1 us. The
harness watches the file from its own process. So every message is accounted for by its own byte (a lost one is seen,
a repeated one is not counted twice), nothing is added to what the peers do, and no peer's clock or counter is trusted.

Layout for n messages: n stamps of 8 bytes (CLOCK_MONOTONIC, ns; written by `stamp` tasks only), then n flags of 1 byte
(0: not run; else the mark of the process that ran it).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

_BYTES_PER_MESSAGE = 9
_CHUNK = 1 << 20


class Board:
    """The mapped file. `flags` and `stamps` are views; nothing here is locked: every message has its own bytes."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.size = len(self._map) // _BYTES_PER_MESSAGE
        view = memoryview(self._map)
        self.stamps = view[: self.size * 8].cast("q")
        self.flags = view[self.size * 8 : self.size * 9]

    @staticmethod
    def create(path: Path, size: int) -> Board:
        path.write_bytes(b"")
        os.truncate(path, size * _BYTES_PER_MESSAGE)
        return Board(path)

    def first_unset(self, start: int, stop: int) -> int:
        """Index of the first message in [start, stop) that has not run, or `stop`."""
        base = self.size * 8
        found = self._map.find(b"\0", base + start, base + stop)
        return stop if found < 0 else found - base

    def done(self, stop: int) -> int:
        """How many of the messages [0, stop) have run. Reads every flag: not for tight loops."""
        return stop - sum(bytes(self.flags[at : min(at + _CHUNK, stop)]).count(0) for at in range(0, stop, _CHUNK))

    def marks(self, stop: int) -> set[int]:
        """The marks of the processes that have run any of [0, stop)."""
        return set(bytes(self.flags[:stop])) - {0}
