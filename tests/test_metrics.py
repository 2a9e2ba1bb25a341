"""Counting, merging and showing metrics."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from taskq.definitions import BACKLOG, DEFINITIONS, LOG_BYTES, RUNNING
from taskq.metrics import (
    Histogram,
    Metrics,
    Sample,
    Snapshot,
    merge,
    metrics,
    prometheus_collector,
    render,
    without_gauges,
)


def values(snapshot: Snapshot) -> dict[tuple[str, str], float]:
    """(sample name, labels as JSON) -> value, as Prometheus would read them."""
    return {
        (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
        for family in text_string_to_metric_families(render(snapshot).decode())
        for sample in family.samples
    }


def one(snapshot: Snapshot, name: str) -> float:
    (value,) = [value for (found, _), value in values(snapshot).items() if found == name]
    return value


def test_a_counter_shows_what_was_counted():
    own = Metrics()
    series = own.published.labels("feed", "fan_out")
    series.inc()
    series.inc(10)
    series.value += 2
    assert own.published.labels("feed", "fan_out") is series
    assert values(own.snapshot()) == {("taskq_published_total", '{"task": "fan_out", "topic": "feed"}'): 13}


def test_labels_that_do_not_fit_are_refused():
    with pytest.raises(TypeError, match="taskq_published_total has the labels"):
        Metrics().published.labels("feed")


def test_a_bucket_includes_its_bound():
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.1, 0.1000001, 1.0, 5.0):
        histogram.observe(seconds)
    assert histogram.read() == [pytest.approx(6.2000001), 1, 2, 1]


@given(st.lists(st.floats(0, 1000), max_size=3000), st.integers(0, 3000))
def test_a_histogram_counts_as_one_by_one(seconds: list[float], single: int):
    bounds = (5e-5, 0.1, 1.0, 600.0)
    histogram = Histogram(bounds)
    for value in seconds[:single]:
        histogram.observe(value)
    histogram.observe_many(seconds[single:])
    total, *counts = histogram.read()
    placed = [0] * 5
    for value in seconds:
        placed[next((i for i, bound in enumerate(bounds) if value <= bound), 4)] += 1
    assert counts == placed
    assert total == pytest.approx(sum(seconds))


def test_a_negative_duration_counts_as_none():
    histogram = Histogram((1.0,))
    histogram.observe(-5)
    assert histogram.read() == [0.0, 1, 0]


def test_nothing_is_lost_when_threads_observe_while_others_read():
    own = Metrics()
    histogram = own.execution_seconds.labels("feed", "t")
    counter = own.executions.labels("feed", "t", "done")
    done = threading.Event()

    def observe() -> None:
        for _ in range(20_000):
            histogram.observe(0.5)
            counter.inc()

    def read() -> None:
        while not done.is_set():
            own.snapshot()

    with ThreadPoolExecutor(5) as pool:
        reader = pool.submit(read)
        for future in [pool.submit(observe) for _ in range(4)]:
            future.result(30)
        done.set()
        reader.result(30)
    assert sum(histogram.read()[1:]) == 80_000
    assert counter.value == 80_000


def test_sources_are_asked_at_each_snapshot():
    own = Metrics()
    backlog = iter([7, 5])

    def source() -> Iterator[Sample]:
        yield Sample(BACKLOG, ("feed", "posts", "0"), next(backlog))

    own.add_source(source)
    assert one(own.snapshot(), "taskq_backlog") == 7
    assert one(own.snapshot(), "taskq_backlog") == 5
    own.remove_source(source)
    assert own.snapshot() == {}


def test_a_source_that_fails_takes_nothing_else_with_it(caplog: pytest.LogCaptureFixture):
    own = Metrics()
    own.published.labels("feed", "t").inc()

    def fails() -> Iterator[Sample]:
        yield Sample(BACKLOG, ("feed", "posts", "0"), 1)
        raise OSError("the disk is gone")

    own.add_source(fails)
    assert set(own.snapshot()) == {"taskq_published_total"}
    assert "the disk is gone" in caplog.text


def test_counts_of_processes_add_up_and_shared_states_do_not():
    snapshots = []
    for published, backlog in ((3, 10), (4, 8)):
        own = Metrics()
        own.published.labels("feed", "t").inc(published)
        own.publish_seconds.labels("feed").observe(published)
        gauges = [Sample(RUNNING, ("feed", "t"), published), Sample(BACKLOG, ("feed", "posts", "0"), backlog)]
        own.add_source(gauges.copy)
        snapshots.append(own.snapshot())
    merged = merge(snapshots)
    assert one(merged, "taskq_published_total") == 7
    assert one(merged, "taskq_running") == 7
    assert one(merged, "taskq_backlog") == 10
    assert one(merged, "taskq_publish_seconds_count") == 2
    assert one(merged, "taskq_publish_seconds_sum") == 7
    assert merge([]) == {}


def test_a_snapshot_survives_json():
    own = Metrics()
    own.publish_seconds.labels("feed").observe(0.5)
    own.commits.labels("feed").inc()
    snapshot = own.snapshot()
    assert msgspec.json.decode(json.dumps(snapshot), type=Snapshot) == snapshot


def test_what_a_dead_process_leaves_is_its_counts():
    own = Metrics()
    own.commits.labels("feed").inc()
    own.add_source(lambda: [Sample(LOG_BYTES, ("posts", "0"), 5)])
    assert set(without_gauges(own.snapshot())) == {"taskq_commits_total"}


def test_buckets_are_cumulative_and_end_with_infinity():
    own = Metrics()
    for seconds in (0.00001, 30, 10_000):
        own.execution_seconds.labels("feed", "t").observe(seconds)
    text = render(own.snapshot()).decode()
    assert 'taskq_execution_seconds_bucket{group="feed",le="5e-05",task="t"} 1.0' in text
    assert 'taskq_execution_seconds_bucket{group="feed",le="600.0",task="t"} 2.0' in text
    assert 'taskq_execution_seconds_bucket{group="feed",le="+Inf",task="t"} 3.0' in text


def test_names_follow_prometheus():
    for definition in DEFINITIONS.values():
        assert definition.name.startswith("taskq_")
        assert definition.name.endswith("_total") == (definition.kind == "counter")
        assert bool(definition.buckets) == (definition.kind == "histogram")


def test_a_program_with_its_own_page_can_show_ours_too():
    registry = CollectorRegistry()
    metrics.published.labels("feed", "own-page").inc()
    registry.register(prometheus_collector())
    assert b'taskq_published_total{task="own-page",topic="feed"} 1.0' in generate_latest(registry)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_from_zero():
    series = metrics.published.labels("feed", "forked")
    series.inc(5)
    pid = os.fork()
    if pid == 0:
        os._exit(int(series.value != 0 or metrics.published.labels("feed", "forked") is not series))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert series.value == 5
