"""The simulated disk keeps what was synced, and is free to do to the rest what disks do."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.simulation.disk import Disk
from tests.simulation.files import Fate, SimFiles

CUTS = 300


def open_disk(tmp_path: Path) -> tuple[Disk, SimFiles]:
    base = tmp_path / "disk"
    base.mkdir()
    disk = Disk(str(base))
    return disk, SimFiles(disk, Fate(Random(1)))


def cuts(disk: Disk, tmp_path: Path, *names: str) -> list[tuple[bytes | None, ...]]:
    """What is left of files after each of many power cuts; None: not there."""
    found: list[tuple[bytes | None, ...]] = []
    for seed in range(CUTS):
        base = tmp_path / str(seed)
        base.mkdir()
        disk.power_cut(Random(seed), str(base), Counter())
        paths = [base / name for name in names]
        found.append(tuple(path.read_bytes() if path.exists() else None for path in paths))
    return found


def test_what_is_synced_with_its_name_stays(tmp_path: Path) -> None:
    disk, files = open_disk(tmp_path)
    fd = files.open(f"{disk.base}/a", create=True)
    files.pwrite(fd, b"kept", 0)
    files.sync(fd)
    files.sync_directory(disk.base)
    assert set(cuts(disk, tmp_path, "a")) == {(b"kept",)}


def test_a_name_is_not_durable_by_its_file(tmp_path: Path) -> None:
    disk, files = open_disk(tmp_path)
    fd = files.open(f"{disk.base}/a", create=True)
    files.pwrite(fd, b"kept", 0)
    files.sync(fd)
    assert set(cuts(disk, tmp_path, "a")) == {(b"kept",), (None,)}


def test_what_is_not_synced_survives_vanishes_tears_and_turns_to_zeros_and_garbage(tmp_path: Path) -> None:
    disk, files = open_disk(tmp_path)
    fd = files.open(f"{disk.base}/a", create=True)
    files.pwrite(fd, b"kept", 0)
    files.sync(fd)
    files.sync_directory(disk.base)
    files.pwrite(fd, b"12345678", 4)
    found = {data for (data,) in cuts(disk, tmp_path, "a") if data is not None}
    assert all(data[:4] == b"kept" for data in found), "no write touched these bytes"
    assert {b"kept", b"kept12345678", b"kept1234", b"kept" + bytes(8)} <= found
    assert len(found) > 20


def test_writes_reach_the_disk_out_of_order(tmp_path: Path) -> None:
    disk, files = open_disk(tmp_path)
    fd = files.open(f"{disk.base}/a", create=True)
    files.sync_directory(disk.base)
    files.pwrite(fd, b"first", 0)
    files.pwrite(fd, b"second", 5)
    assert (bytes(5) + b"second",) in cuts(disk, tmp_path, "a")


def test_a_rename_is_there_or_not(tmp_path: Path) -> None:
    disk, files = open_disk(tmp_path)
    for name in ("old", "new"):
        fd = files.open(f"{disk.base}/{name}", create=True)
        files.pwrite(fd, name.encode(), 0)
        files.sync(fd)
    files.sync_directory(disk.base)
    files.rename(f"{disk.base}/new", f"{disk.base}/old")
    assert set(cuts(disk, tmp_path, "old", "new")) == {(b"old", b"new"), (b"new", None)}


def test_what_a_failed_fsync_lost_is_not_saved_by_the_next_one(tmp_path: Path) -> None:
    disk, files = open_disk(tmp_path)
    lost = 0
    for number in range(40):
        fd = files.open(f"{disk.base}/{number}", create=True)
        files.pwrite(fd, b"unlucky", 0)
        files.fail_sync_in = 1
        with pytest.raises(OSError, match="Input/output"):
            files.sync(fd)
        files.sync(fd)
    files.sync_directory(disk.base)
    base = tmp_path / "after"
    base.mkdir()
    disk.power_cut(Random(0), str(base), Counter())
    for number in range(40):
        lost += (base / str(number)).read_bytes() != b"unlucky"
    assert 5 < lost < 40
