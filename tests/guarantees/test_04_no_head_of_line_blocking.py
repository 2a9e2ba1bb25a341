"""Guarantee 4: with `order="none"` a slow invocation delays no other in its partition."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import bench, wait_until


@pytest.mark.parametrize("crew", ["wait_for_file", "wait_for_file_async"])
def test_a_slow_invocation_delays_no_other_in_its_partition(tmp_path: Path, crew: str) -> None:
    with bench(tmp_path) as here:
        here.task(crew).options(key="same").delay("slow")
        here.task("note").options(key="same").map([(number,) for number in range(10_000)])
        worker = here.start_worker("feed", "-c", "4")
        lines = here.wait_for_lines(10_001)
        assert "end slow" not in lines
        wait_until(lambda: here.unfinished("feed") == 1, "all others are finished and committed")
        (tmp_path / "slow").touch()
        here.wait_for_lines(10_002)
        wait_until(lambda: here.unfinished("feed") == 0, "so is the slow one")
        assert worker.stop() == 0
