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

from taskq.broker.log import partition
from tests.simulation.world import Counts, World

CUTS_MAX = 4


@contextmanager
def small_checkpoints() -> Iterator[None]:
    """Write a checkpoint every few records, and let recovery be silent about what is normal here."""
    log = logging.getLogger("taskq.log")
    before, level = partition.CHECKPOINT_BYTES, log.level
    partition.CHECKPOINT_BYTES = 1000
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        partition.CHECKPOINT_BYTES = before
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
    with disk_in_memory() as base, small_checkpoints():
        world = World(seed, base, counts, log)
        try:
            world.run(Random(seed).randrange(1, CUTS_MAX + 1))
        except Exception as error:  # whatever it is: nothing a history does may raise
            return error
        finally:
            for process in world.processes:
                process.die()
    return None
