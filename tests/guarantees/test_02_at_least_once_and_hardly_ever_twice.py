"""Guarantee 2: after `kill -9` of a worker, what runs again is only what was running, or had finished within the last
commit interval. An invocation is finished only when its outcome is durable."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path

import pytest

from taskq.worker.signals import SIGNAL_ECHO_S
from tests.processes import Bench, WorkerProcess, bench, wait_until
from tests.scrapes import page, partitions_held, wait_for_balance

CONCURRENCY = 16
COMMIT_INTERVAL_S = 0.1
LATE_S = 0.15
"""How late a commit may be on a busy machine."""


@pytest.mark.alone
def test_of_two_workers_one_is_killed_midway_three_times(tmp_path: Path) -> None:
    """None lost, hardly any repeated, and the survivor holds all partitions within a second (guarantee 5)."""
    count = 20_000
    with bench(tmp_path) as here:
        survivor = here.start_worker("feed").wait_ready()
        for turn in range(3):
            here.audit.write_bytes(b"")
            victim = here.start_worker("feed").wait_ready()
            wait_for_balance(survivor, victim)
            here.task("note_when_and_where").map([(number,) for number in range(count)])
            here.wait_for_lines(count // 2)
            victim.kill()
            assert len(here.audited()) < count, "it was killed midway"
            wait_until(lambda: partitions_held(survivor) == 8, "the survivor holds all partitions", within_s=1.0)
            here.wait_for_lines(count)
            wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
            check_runs(here, victim, count, turn)
        assert survivor.stop() == 0


def check_runs(here: Bench, victim: WorkerProcess, count: int, turn: int) -> None:
    runs: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
    for line in here.audited():
        number, pid, at = line.split()
        runs[int(number)].append((int(pid), float(at)))
    assert len(runs) == count, "none is lost"
    own = [at for ran in runs.values() for pid, at in ran if pid == victim.process.pid]
    last = max(own)
    repeated = [ran for ran in runs.values() if len(ran) > 1]
    for ran in repeated:
        assert len(ran) == 2
        assert last - ran[0][1] <= COMMIT_INTERVAL_S + LATE_S, "only what was not committed yet runs again"
        assert ran[0][0] == victim.process.pid
    uncommitted = sum(last - at <= COMMIT_INTERVAL_S + LATE_S for at in own)
    print(f"kill {turn}: {count} run, {len(repeated)} of them twice")
    assert len(repeated) <= CONCURRENCY + uncommitted


def test_what_was_finished_above_a_slow_one_does_not_run_again(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.task("wait_for_file").options(key="same").delay("never")
        here.task("note").options(key="same").map([(number,) for number in range(500)])
        worker = here.start_worker("feed", "-c", "4").wait_ready()
        here.wait_for_lines(501)
        wait_until(lambda: here.unfinished("feed") == 1, "all but the slow one is committed")
        worker.kill()
        again = here.start_worker("feed", "-c", "4").wait_ready()
        lines = here.wait_for_lines(502)
        (tmp_path / "never").touch()
        lines = here.wait_for_lines(503)
        wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
        assert again.stop() == 0
        assert sorted(lines) == sorted(["start never", "start never", "end never", *map(str, range(500))])


def test_a_drain_finishes_what_runs_and_repeats_nothing(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.task("note_when_done").map([(number, 0.05) for number in range(200)])
        here.task("note_when_done_async").map([(number, 0.05) for number in range(200, 400)])
        first = here.start_worker("feed")
        here.wait_for_lines(100)
        assert first.stop() == 0
        stopped_at = len(here.audited())
        here.start_worker("feed")
        lines = here.wait_for_lines(800)
        assert 100 <= stopped_at < 800
        assert sorted(lines) == sorted(f"{what} {number}" for what in ("start", "end") for number in range(400))


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.task("wait_for_file").delay("never")
        here.task("note").delay(1)
        worker = here.start_worker("feed", "-c", "2").wait_ready()
        here.wait_for_lines(2)
        worker.process.terminate()
        worker.wait_for("draining")
        wait_until(lambda: "it is draining" in page(worker, "/readyz"), "it says that it drains")
        drained_at = time.monotonic()
        wait_until(lambda: time.monotonic() > drained_at + 2 * SIGNAL_ECHO_S, "the next signal is no echo")
        worker.process.terminate()
        assert worker.process.wait(5) == 1
        assert here.unfinished("feed") == 1
