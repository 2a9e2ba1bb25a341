"""A partition on a real disk, looked through batch by batch after every test that used it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.broker.log.batch import encode_one
from taskq.broker.log.files import RealFiles
from taskq.broker.log.inspection import DAMAGE, inspect
from taskq.broker.log.partition import Partition

NOW_MS = 1_700_000_000_000
OpenPartition = Callable[..., Partition]


def verify(directory: Path, end: int) -> None:
    """Every batch up to `end` is sound, and offsets have no gaps: what `taskq log verify` says, too."""
    look = inspect(RealFiles(), str(directory))
    bad = [one for one in look.findings if one.severity == DAMAGE or "torn" in one.what]
    assert not bad, "\n".join(map(str, bad))
    assert look.end == end


@pytest.fixture
def open_partition(tmp_path: Path) -> Iterator[OpenPartition]:
    """Opens the one partition of this test, any number of times, each as another process would."""
    opened: list[Partition] = []

    def open_one(files: RealFiles | None = None, **options: Any) -> Partition:
        partition = Partition(
            files or RealFiles(), str(tmp_path), "feed/0", lambda bits: None, lambda end: (), **options
        )
        opened.append(partition)
        return partition

    yield open_one
    if opened:
        verify(tmp_path, opened[-1].end())
        for partition in opened:
            partition.close()


def plain(value: bytes, timestamp_ms: int = NOW_MS) -> bytes:
    return encode_one(value, None, (), timestamp_ms)
