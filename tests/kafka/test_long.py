"""Tasks that run for longer than a group waits for anybody.

A member is alive while its process is, however long its tasks run: heartbeats come from librdkafka's own thread, and
the member polls whatever runs. So the session's and the poll's time-outs say nothing about tasks, but for one case:
when another member should have a partition, the group waits for what runs in it, for 0.9 of `max.poll.interval.ms` (of
300 s, if nothing is said). What runs longer than that is run again by the other. Who has longer tasks sets it longer.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from taskq.broker.kafka.member import GIVE_UP_AT
from tests.kafka.cluster import Cluster
from tests.kafka.looking import finished, owners, until, wait_for_share
from tests.kafka.urls import url
from tests.processes import bench

LIMIT_S = 6.0
SHORT = {"session.timeout.ms": "6000", "max.poll.interval.ms": str(int(LIMIT_S * 1000))}
EVERYWHERE = 40
"""So many that each partition has some."""


@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_long_task_keeps_its_partition(empty: Cluster, tmp_path: Path, protocol: str) -> None:
    with bench(tmp_path, broker=url(empty, {**SHORT, "group.protocol": protocol})) as here:
        worker = here.start_worker("feed", "-c", "64").wait_ready()
        here.task("note_when_done").map([(number, 2.5 * LIMIT_S) for number in range(EVERYWHERE)])
        here.wait_for_lines(EVERYWHERE)
        here.task("note").delay(1)
        lines = here.wait_for_lines(2 * EVERYWHERE + 1, within_s=2.5 * LIMIT_S + 10)
        finished(here)
        assert "holds no partitions" not in worker.log
        assert "gave up" not in worker.log
        assert len(lines) == len(set(lines)) == 2 * EVERYWHERE + 1
        assert worker.stop() == 0


@pytest.mark.alone
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_newcomer_waits_for_what_runs(empty: Cluster, tmp_path: Path, protocol: str) -> None:
    """They have run for longer than any time-out when it comes, and need a little less than it may wait."""
    seconds = 2 * LIMIT_S
    with bench(tmp_path, broker=url(empty, {**SHORT, "group.protocol": protocol})) as here:
        first = here.start_worker("feed", "-c", "64").wait_ready()
        here.task("note_when_done").map([(number, seconds) for number in range(EVERYWHERE)])
        here.wait_for_lines(EVERYWHERE)
        late = time.monotonic() + seconds - 0.6 * GIVE_UP_AT * LIMIT_S
        until(lambda: time.monotonic() > late, "they are nearly done")
        second = here.start_worker("feed", "-c", "64")
        here.wait_for_lines(2 * EVERYWHERE, within_s=20)
        wait_for_share(here)
        finished(here)
        lines = here.audited()
        assert len(lines) == len(set(lines)) == 2 * EVERYWHERE
        assert first.stop() == second.stop() == 0


@pytest.mark.alone
@pytest.mark.timeout(90)
def test_a_newcomer_does_not_wait_for_ever(empty: Cluster, tmp_path: Path) -> None:
    """What takes longer than it may wait is run again, by the newcomer, and by nobody else; and is finished once."""
    with bench(tmp_path, broker=url(empty, SHORT)) as here:
        first = here.start_worker("feed", "-c", "64").wait_ready()
        here.task("wait_for_file").map([("go",)] * EVERYWHERE)
        here.wait_for_lines(EVERYWHERE)
        second = here.start_worker("feed", "-c", "64")
        until(lambda: len(set(owners(here)["feed"])) == 2, "the newcomer has some")
        first.wait_for("has waited long enough for what runs in")
        until(lambda: len(here.audited()) > EVERYWHERE, "it runs them again")
        (tmp_path / "go").touch()
        finished(here)
        lines = here.audited()
        assert EVERYWHERE < lines.count("start go") <= 2 * EVERYWHERE
        assert first.stop() == second.stop() == 0
