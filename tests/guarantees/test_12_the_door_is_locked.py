"""Guarantee 12: a data directory is private to its user (0700, files 0600) unless configured."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.processes import bench, wait_until


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
@pytest.mark.parametrize(("mode", "directories", "files"), [("private", 0o700, 0o600), ("group", 0o770, 0o660)])
def test_a_data_directory_is_private_unless_configured(
    tmp_path: Path, umask: int, mode: str, directories: int, files: int
) -> None:
    old = os.umask(umask)
    try:
        with bench(tmp_path) as here:
            here.app.configure(directory_mode=mode)
            here.environment["TASKQ_DIRECTORY_MODE"] = mode
            here.task("note").delay(1)
            here.task("fail").delay(1)
            worker = here.start_worker("feed")
            here.wait_for_lines(1)
            wait_until(lambda: here.unfinished("feed") == 0, "both are done")
            found: dict[str, set[str]] = {"directories": set(), "files": set()}
            for path in [tmp_path / "log", *(tmp_path / "log").rglob("*")]:
                kind = "directories" if path.is_dir() else "files"
                found[kind].add(oct(stat.S_IMODE(path.stat().st_mode)))
            assert found == {"directories": {oct(directories)}, "files": {oct(files)}}
            assert worker.stop() == 0
    finally:
        os.umask(old)
