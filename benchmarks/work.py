"""What the tasks do: the same plain functions for every peer. Imported by workers and publishers, never by the harness.

They are given only their message's index. `BENCH_BOARD` names the board's file.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from time import perf_counter_ns

from benchmarks.board import Board
from benchmarks.peer import SLEEP_S

board = Board(Path(os.environ["BENCH_BOARD"]))
_flags = board.flags
_stamps = board.stamps
_mark = 0


def _choose_mark() -> None:
    """Give this process a mark of its own (1 to 255): pids of processes started together hardly ever share one."""
    global _mark
    _mark = os.getpid() % 255 + 1


_choose_mark()
os.register_at_fork(after_in_child=_choose_mark)


def noop(index: int) -> None:
    _flags[index] = _mark


async def noop_async(index: int) -> None:
    _flags[index] = _mark


def stamp(index: int) -> None:
    _stamps[index] = perf_counter_ns()
    _flags[index] = _mark


def sleep(index: int) -> None:
    time.sleep(SLEEP_S)
    _flags[index] = _mark


async def sleep_async(index: int) -> None:
    await asyncio.sleep(SLEEP_S)
    _flags[index] = _mark


TASKS = {function.__name__: function for function in (noop, noop_async, stamp, sleep, sleep_async)}
