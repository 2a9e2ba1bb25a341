"""Guarantee 8: delayed invocations survive restarts, hold no worker's memory, and fire no earlier than due and soon
after."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.processes import bench, wait_until
from tests.soak.delays import rss_of, run

DAY_S = 24 * 3600.0


@pytest.mark.timeout(120)
def test_delays_survive_the_death_of_workers(tmp_path: Path) -> None:
    found = run(tmp_path, count=2000, kills=2, longest_s=5.0)
    assert found.ran == found.count, found
    assert found.early == 0, found
    assert found.twice <= found.count // 4, found


@pytest.mark.alone
@pytest.mark.timeout(120)
def test_on_an_idle_system_they_fire_within_100_ms(tmp_path: Path) -> None:
    found = run(tmp_path, count=2000, kills=0, longest_s=6.0)
    assert (found.ran, found.early, found.twice) == (found.count, 0, 0), found
    assert found.late_ms_p99 <= 100, found


@pytest.mark.timeout(120)
def test_what_is_parked_costs_a_worker_nothing(tmp_path: Path) -> None:
    with bench(tmp_path, "tests.apps.soak") as here:
        worker = here.start_worker("soak").wait_ready()
        before = rss_of(worker)
        parked = here.task("quick").options(delay=DAY_S)
        for _ in range(20):
            parked.map([()] * 5000)
        here.task("quick").options(id="now").delay()
        here.task("quick").options(id="soon", delay=0.5).delay()
        due = time.time() + 0.5
        lines = here.wait_for_lines(2)
        assert [line.split()[1] for line in lines] == ["now", "soon"]
        assert float(lines[1].split()[-1]) >= due - 0.001
        wait_until(lambda: "100000" in worker.scrape() or "100001" in worker.scrape(), "they are counted")
        assert rss_of(worker) - before < 25_000_000
        assert worker.stop() == 0
