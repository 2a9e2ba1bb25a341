"""Guarantee 5: a dead embedded worker's partitions are running elsewhere within 1 s; a task may run for long without
losing its partition."""

from __future__ import annotations

import time
from pathlib import Path

from taskq.broker.consumer import KEEP_S
from taskq.worker.poller import HANDOVER_S
from tests.processes import bench, wait_until
from tests.scrapes import partitions_held, wait_for_balance


def test_what_a_killed_worker_held_runs_elsewhere_within_a_second(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        survivor = here.start_worker("feed").wait_ready()
        for _ in range(3):
            victim = here.start_worker("feed").wait_ready()
            wait_for_balance(survivor, victim)
            before = len(here.audited())
            victim.kill()
            killed_at = time.monotonic()
            here.task("note").map([(number,) for number in range(80)])
            here.wait_for_lines(before + 80)
            assert time.monotonic() - killed_at < 1.0
        assert survivor.stop() == 0


def test_a_worker_that_leaves_in_order_is_replaced_at_once(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        first, second = (here.start_worker("feed").wait_ready() for _ in range(2))
        wait_for_balance(first, second)
        assert first.stop() == 0
        wait_until(lambda: partitions_held(second) == 8, "the other has all", within_s=1.0)


def test_a_long_task_keeps_its_partition_and_the_others_move(tmp_path: Path) -> None:
    """It runs on through rebalances, its partition's other work goes on beside it, and it is never run twice."""
    with bench(tmp_path) as here:
        here.task("wait_for_file").options(key="same").delay("long")
        first = here.start_worker("feed").wait_ready()
        here.wait_for_lines(1)
        second = here.start_worker("feed").wait_ready()
        wait_until(lambda: partitions_held(second) >= 3, "the newcomer has what could move")
        wait_until(lambda: "kept" in first.log, "the partition of the long one is kept", HANDOVER_S + KEEP_S + 5)
        here.task("note").options(key="same").map([(number,) for number in range(50)])
        assert "end long" not in here.wait_for_lines(51)
        (tmp_path / "long").touch()
        lines = here.wait_for_lines(52)
        wait_until(lambda: partitions_held(first) == partitions_held(second) == 4, "then it moves", KEEP_S + 5)
        assert first.stop() == second.stop() == 0
        assert sorted(lines) == sorted(["start long", "end long", *map(str, range(50))])
