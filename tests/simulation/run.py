"""Running histories by their seeds: one in words, or thousands."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from tests.simulation.counts import Counts
from tests.simulation.world import World

CUTS_MAX = 4


@contextmanager
def small_measures() -> Iterator[None]:
    """Write a checkpoint every few records, sync every few commits, and let recovery be silent: all is normal here."""
    log = logging.getLogger("taskq.log")
    level = log.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("taskq.broker.log.partition.CHECKPOINT_BYTES", 1000)
        patch.setattr("taskq.broker.log.offsets.COMMITS_UNSYNCED_MAX", 4)
        log.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            log.setLevel(level)


@contextmanager
def disk_in_memory() -> Iterator[str]:
    """A directory in memory if the system has any."""
    shared = Path("/dev/shm")
    base = tempfile.mkdtemp(prefix="taskq-simulation-", dir=shared if os.access(shared, os.W_OK) else None)
    try:
        yield base
    finally:
        shutil.rmtree(base)


def run(seed: int, counts: Counts, log: Callable[[str], None] | None = None) -> BaseException | None:
    """Run one history; return what was wrong, if anything."""
    with disk_in_memory() as base, small_measures():
        world = World(seed, base, counts, log)
        try:
            world.run(Random(seed).randrange(1, CUTS_MAX + 1))
        except Exception as error:  # whatever it is: nothing a history does may raise
            return error
        finally:
            for process in world.processes:
                process.die()
    return None
