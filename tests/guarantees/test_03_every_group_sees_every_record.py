"""Guarantee 3: every group sees every record; within a group one worker at a time holds a partition."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.processes import bench, metric, wait_until


def test_each_group_runs_its_handlers_of_every_event(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        posted = here.app.events["posted"]
        for number in range(50):
            posted.publish(number=number)
        feed, search = here.start_worker("feed"), here.start_worker("search")
        lines = here.wait_for_lines(150)
        wait_until(lambda: here.unfinished("feed") == here.unfinished("search") == 0, "both are done")
        assert feed.stop() == search.stop() == 0
        expected = [f"{who} {number}" for who in ("feed", "feed too", "search") for number in range(50)]
        assert sorted(lines) == sorted(expected)


def test_what_belongs_to_another_group_on_the_same_topic_is_skipped_and_counted(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.task("note").map([(number,) for number in range(20)])
        here.task("index").map([(number,) for number in range(30)])
        feed, search = here.start_worker("feed"), here.start_worker("search")
        lines = here.wait_for_lines(50)
        wait_until(lambda: here.unfinished("feed") == here.unfinished("search") == 0, "both are done")
        assert Counter(line.startswith("index") for line in lines) == {False: 20, True: 30}
        assert metric(feed.scrape(), "taskq_executions_total", outcome="skipped") == [30.0]
        assert metric(search.scrape(), "taskq_executions_total", outcome="skipped") == [20.0]


def test_each_record_is_run_by_one_worker_of_the_group_while_workers_come_and_go(tmp_path: Path) -> None:
    """A rebalance neither runs anything twice nor stops what runs."""
    with bench(tmp_path) as here:
        first = here.start_worker("feed").wait_ready()
        here.task("note_when_done").map([(number, 0.01) for number in range(1500)])
        second = here.start_worker("feed").wait_ready()
        here.wait_for_lines(1000)
        third = here.start_worker("feed").wait_ready()
        here.wait_for_lines(1500)
        assert first.stop() == 0
        lines = here.wait_for_lines(3000)
        wait_until(lambda: here.unfinished("feed") == 0, "all is done")
        assert second.stop() == third.stop() == 0
        assert Counter(lines) == {f"{what} {number}": 1 for what in ("start", "end") for number in range(1500)}
