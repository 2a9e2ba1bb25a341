"""Worker processes on a real Kafka: they share, drain, die and are followed by others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from taskq import TaskQ
from taskq.broker.port import TopicPartition
from tests.guarantees.test_06_a_task_that_kills_its_worker_is_stopped import check, publish
from tests.kafka.cluster import Cluster
from tests.kafka.looking import finished, owners, until, wait_for_share
from tests.kafka.urls import url
from tests.processes import Bench, bench, metric

COUNT = 8000


def runs(here: Bench) -> Counter[str]:
    return Counter(line.split()[0] for line in here.audited())


@pytest.mark.alone
def test_two_share_and_rebalance_and_run_nothing_twice(here: Bench) -> None:
    first = here.start_worker("feed").wait_ready()
    here.task("note_when_and_where").map([(number,) for number in range(COUNT)])
    here.wait_for_lines(100)
    second = here.start_worker("feed").wait_ready()
    wait_for_share(here)
    here.task("note_when_and_where").map([(number,) for number in range(COUNT, 2 * COUNT)])
    here.wait_for_lines(COUNT + 100)
    assert first.stop() == 0
    wait_for_share(here, 1)
    here.wait_for_lines(2 * COUNT)
    finished(here)
    assert second.stop() == 0
    assert set(runs(here).values()) == {1}
    by = Counter(line.split()[1] for line in here.audited())
    assert set(by) == {str(first.process.pid), str(second.process.pid)}


def test_a_drain_finishes_what_runs_and_repeats_nothing(here: Bench) -> None:
    here.task("note_when_done").map([(number, 0.05) for number in range(200)])
    here.task("note_when_done_async").map([(number, 0.05) for number in range(200, 400)])
    first = here.start_worker("feed")
    here.wait_for_lines(100)
    assert first.stop() == 0
    stopped_at = len(here.audited())
    assert not owners(here), "it has left its group"
    here.start_worker("feed")
    lines = here.wait_for_lines(800)
    assert 100 <= stopped_at < 800
    assert sorted(lines) == sorted(f"{what} {number}" for what in ("start", "end") for number in range(400))


@pytest.mark.alone
def test_of_two_one_is_killed_midway(here: Bench) -> None:
    """None is lost, and only what had not been committed runs again, by the other, when the session is over."""
    survivor = here.start_worker("feed").wait_ready()
    victim = here.start_worker("feed").wait_ready()
    wait_for_share(here)
    here.task("note_when_and_where").map([(number,) for number in range(2 * COUNT)])
    here.wait_for_lines(COUNT)
    victim.kill()
    assert len(here.audited()) < 2 * COUNT, "it was killed midway"
    until(lambda: len(runs(here)) == 2 * COUNT, "none is lost")
    finished(here)
    assert survivor.stop() == 0
    twice = {number for number, count in runs(here).items() if count > 1}
    own = {ran[0]: float(ran[2]) for ran in map(str.split, here.audited()) if ran[1] == str(victim.process.pid)}
    last = max(own.values())
    print(f"{2 * COUNT} run, {len(twice)} of them twice")
    assert set(runs(here).values()) <= {1, 2}
    assert all(last - own[number] <= 0.1 + 0.25 for number in twice), "the last commit interval's, and a little"


def test_what_was_finished_above_a_slow_one_does_not_run_again(here: Bench) -> None:
    here.task("wait_for_file").options(key="same").delay("never")
    here.task("note").options(key="same").map([(number,) for number in range(500)])
    worker = here.start_worker("feed", "-c", "4").wait_ready()
    here.wait_for_lines(501)
    until(lambda: here.unfinished("feed") == 1, "all but the slow one is committed")
    worker.kill()
    again = here.start_worker("feed", "-c", "4").wait_ready()
    here.wait_for_lines(502)
    (here.folder / "never").touch()
    lines = here.wait_for_lines(503)
    finished(here)
    assert again.stop() == 0
    assert sorted(lines) == sorted(["start never", "start never", "end never", *map(str, range(500))])


@pytest.mark.alone
@pytest.mark.timeout(120)
def test_poison_is_one_dead_letter_and_everything_around_it_has_run(empty: Cluster, tmp_path: Path) -> None:
    """Two deaths of a worker, each of which the group notices when its session is over; then of child processes."""
    with bench(tmp_path, "tests.apps.poison", url(empty)) as here:
        publish(here, "poison_3", "exit")
        worker = here.start_worker("feed", "-p", "2")
        finished(here, 90)
        assert worker.stop() == 0
        check(here, "poison_3", 3)


def test_what_may_run_once_only_is_not_delivered_again(empty: Cluster, tmp_path: Path) -> None:
    with bench(tmp_path, "tests.apps.poison", url(empty)) as here:
        here.task("poison_once").delay("kill")
        here.task("note").map([(number,) for number in range(20)])
        worker = here.start_worker("feed", "-p", "1", "--max-invocations", "1000")  # supervised
        finished(here)
        assert worker.stop() == 0
        lines = here.audited()
        assert lines.count("poison kill") == 1
        assert {str(number) for number in range(20)} == set(lines) - {"poison kill"}


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_partitions_that_are_added_are_taken_up(empty: Cluster, tmp_path: Path, protocol: str) -> None:
    with bench(tmp_path, broker=url(empty, {"group.protocol": protocol})) as here:
        worker = here.start_worker("feed").wait_ready()
        wait_for_share(here, 1)
        empty.tool("kafka-topics", "--alter", "--topic", "feed", "--partitions", "10")
        wait_for_share(here, 1, total=34)
        here.task("note").map([(number,) for number in range(500)])
        here.wait_for_lines(500)
        finished(here)
        with TaskQ("looks", broker=here.broker) as app:
            ends = [app.broker.reader().bounds(TopicPartition("feed", number)).end for number in (8, 9)]
        assert all(ends), "some of it was published to them"
        assert worker.stop() == 0


def test_they_share_by_the_newer_protocol_too(empty: Cluster, tmp_path: Path) -> None:
    with bench(tmp_path, broker=url(empty, {"group.protocol": "consumer"})) as here:
        first = here.start_worker("feed").wait_ready()
        here.task("note_when_and_where").map([(number,) for number in range(COUNT)])
        here.wait_for_lines(100)
        second = here.start_worker("feed").wait_ready()
        wait_for_share(here)
        here.wait_for_lines(COUNT)
        assert first.stop() == 0
        wait_for_share(here, 1)
        here.task("note_when_and_where").map([(number,) for number in range(COUNT, COUNT + 100)])
        here.wait_for_lines(COUNT + 100)
        finished(here)
        assert second.stop() == 0
        assert set(runs(here).values()) == {1}


def test_what_librdkafka_knows_is_on_the_page(empty: Cluster, tmp_path: Path) -> None:
    with bench(tmp_path, broker=url(empty, {"statistics.interval.ms": "100"})) as here:
        worker = here.start_worker("feed").wait_ready()
        here.task("fail").delay(1)  # a dead letter: the worker publishes too

        def told(name: str, **labels: str) -> list[float]:
            return metric(worker.scrape(), f"taskq_kafka_{name}", **labels)

        for client in ("producer", "member of feed for feed"):
            until(lambda client=client: told("broker_up", client=client, broker="1") == [1.0], client)  # type: ignore[misc]
        for name in ("sent_bytes", "received_bytes", "request_seconds", "group_rebalances"):
            until(lambda name=name: any(told(name)), name)  # type: ignore[misc]
        assert told("request_errors")
        until(lambda: told("waiting_messages", client="producer") == [0.0], "nothing waits to be sent")
        assert worker.stop() == 0
