"""Metrics (definitions.py): counted in plain ints and lists, shown in Prometheus's text format.

Why not prometheus-client's own objects: `inc` costs 0.4 us and `observe` 0.8 there, as much as the rest of running a
no-op invocation, and its multi-process mode doubles that and leaves files behind. Here a hot path binds one series once
(`published = metrics.published.labels(topic, task)`) and then pays for an addition or a `list.append`:

    Counter.inc        an addition to an int. No thread switch can fall inside it under the GIL, so counts are exact;
                       a free-threaded build may lose a few when two threads count the same series at once
    Histogram.observe  appends to a list, which is folded into buckets when it is long enough and at each scrape:
                       sorting 1024 floats and bisecting for each bucket is cheaper than placing them one by one

What is a state rather than a happening (backlog, log bytes) is computed when somebody asks, by sources:
`metrics.add_source(callable)`.

A `Snapshot` is all series of one process at one moment, as plain JSON-able values, so that processes can pass theirs
to a parent that merges them: `render(merge([...]))` is one page for all.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeAlias, TypeVar

from taskq.definitions import (
    COMMITS,
    DEFINITIONS,
    EXECUTION_SECONDS,
    EXECUTIONS,
    OVERDUE,
    PUBLISH_SECONDS,
    PUBLISHED,
    REBALANCES,
    SKIPPED_OFFSETS,
    WAIT_SECONDS,
    Definition,
)

if TYPE_CHECKING:
    from prometheus_client.core import Metric

_log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels: TypeAlias = tuple[str, ...]
Snapshot: TypeAlias = dict[str, list[tuple[Labels, list[float]]]]
"""Metric name -> its series: label values in the order of the definition, and numbers. A counter or gauge has one
number; a histogram its sum, then the count of each bucket (not cumulative), the last for what is over all bounds."""

_PENDING_MAX = 1024
"""Observations a histogram holds before it folds them: about 60 us of work, once in a thousand calls."""


class Sample(NamedTuple):
    """One gauge's value as a source computes it: `Sample(BACKLOG, ("feed", "posts", "0"), 17)`."""

    definition: Definition
    labels: Labels
    value: float


Source: TypeAlias = Callable[[], Iterable[Sample]]


class Counter:
    """One series that counts: `inc(n)`, or `value += n` where the call would cost too much."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def inc(self, n: float = 1) -> None:
        self.value += n

    def read(self) -> list[float]:
        """The numbers of this series in a `Snapshot`."""
        return [self.value]

    def reset(self) -> None:
        """Start again from nothing, as a forked child must."""
        self.value = 0


class Histogram:
    """One series of durations, in seconds."""

    # The lock guards _counts and _sum. _pending is shared without it: threads only append at its end, and whoever folds
    # takes a copy and deletes as many from its front, so what comes meanwhile stays for the next time.
    __slots__ = ("_bounds", "_counts", "_lock", "_pending", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._pending: list[float] = []
        self.reset()

    def observe(self, seconds: float) -> None:
        pending = self._pending
        pending.append(seconds)
        if len(pending) > _PENDING_MAX:
            self._fold_if_free()

    def observe_many(self, seconds: Iterable[float]) -> None:
        """The same for a batch, at a third of the price."""
        pending = self._pending
        pending.extend(seconds)
        if len(pending) > _PENDING_MAX:
            self._fold_if_free()

    def read(self) -> list[float]:
        """The numbers of this series in a `Snapshot`."""
        with self._lock:
            self._fold()
            return [self._sum, *self._counts]

    def reset(self) -> None:
        """Start again from nothing, as a forked child must: another thread may have held the lock at the fork."""
        self._lock = threading.Lock()
        self._pending.clear()
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def _fold_if_free(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def _fold(self) -> None:
        values = self._pending[:]
        del self._pending[: len(values)]
        if not values:
            return
        values.sort()
        if values[0] < 0:  # a clock that was set back: Prometheus takes a falling sum for a restart
            values = [max(value, 0.0) for value in values]
        self._sum += sum(values)
        below = 0
        for bucket, bound in enumerate(self._bounds):
            up_to = bisect_right(values, bound, below)
            self._counts[bucket] += up_to - below
            below = up_to
            if below == len(values):
                return
        self._counts[-1] += len(values) - below


S = TypeVar("S", bound="Counter | Histogram")


class Family(Generic[S]):
    """All series of one metric."""

    __slots__ = ("_make", "_series", "definition")

    def __init__(self, definition: Definition, make: Callable[[], S]) -> None:
        self.definition = definition
        self._make = make
        self._series: dict[Labels, S] = {}

    def labels(self, *values: str) -> S:
        """The series with these label values, made when first asked for. Keep it where it is used often."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self.definition.labels):
                raise TypeError(f"{self.definition.name} has the labels {self.definition.labels}, not {values}")
            series = self._series.setdefault(values, self._make())
        return series

    def read(self) -> list[tuple[Labels, list[float]]]:
        """All series, as a `Snapshot` keeps them."""
        return [(labels, series.read()) for labels, series in list(self._series.items())]

    def reset(self) -> None:
        """Start all series again from nothing; series that are bound somewhere stay bound."""
        for series in list(self._series.values()):
            series.reset()


class Metrics:
    """The metrics of one process. `taskq.metrics.metrics` is the one in use; tests make their own."""

    def __init__(self) -> None:
        self.published = _counters(PUBLISHED)
        self.publish_seconds = _histograms(PUBLISH_SECONDS)
        self.executions = _counters(EXECUTIONS)
        self.execution_seconds = _histograms(EXECUTION_SECONDS)
        self.wait_seconds = _histograms(WAIT_SECONDS)
        self.commits = _counters(COMMITS)
        self.rebalances = _counters(REBALANCES)
        self.skipped_offsets = _counters(SKIPPED_OFFSETS)
        self.overdue = _counters(OVERDUE)
        self._counters = (
            self.published, self.executions, self.commits, self.rebalances, self.skipped_offsets, self.overdue
        )  # fmt: skip
        self._histograms = (self.publish_seconds, self.execution_seconds, self.wait_seconds)
        self._sources: list[Source] = []

    def add_source(self, source: Source) -> None:
        """Have `source` called at each snapshot, from any thread. One that raises is logged and left out."""
        self._sources.append(source)

    def remove_source(self, source: Source) -> None:
        """Raises ValueError if it was not added."""
        self._sources.remove(source)

    def snapshot(self) -> Snapshot:
        """Everything as it is now. Thread-safe."""
        found: Snapshot = {}
        for counter in self._counters:
            found[counter.definition.name] = counter.read()
        for histogram in self._histograms:
            found[histogram.definition.name] = histogram.read()
        for source in list(self._sources):
            try:
                samples = list(source())
            except Exception:
                _log.exception("a source of metrics failed; what it tells is missing from this scrape")
                continue
            for definition, labels, value in samples:
                found.setdefault(definition.name, []).append((labels, [value]))
        return {name: series for name, series in found.items() if series}

    def reset(self) -> None:
        """Start all series again from nothing."""
        for counter in self._counters:
            counter.reset()
        for histogram in self._histograms:
            histogram.reset()


def _counters(definition: Definition) -> Family[Counter]:
    return Family(definition, Counter)


def _histograms(definition: Definition) -> Family[Histogram]:
    return Family(definition, lambda: Histogram(definition.buckets))


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """One snapshot of many: counts and histograms add up, gauges as their definition says."""
    merged: dict[str, dict[Labels, list[float]]] = {}
    for snapshot in snapshots:
        for name, all_series in snapshot.items():
            into = merged.setdefault(name, {})
            combine = max if DEFINITIONS[name].merge == "max" else _add
            for labels, numbers in all_series:
                known = into.get(labels)
                into[labels] = numbers if known is None else list(map(combine, known, numbers))
    return {name: list(series.items()) for name, series in merged.items()}


def _add(left: float, right: float) -> float:
    return left + right


def without_gauges(snapshot: Snapshot) -> Snapshot:
    """What of a process that has ended must stay on the page: counts never fall, states are gone."""
    return {name: series for name, series in snapshot.items() if DEFINITIONS[name].kind != "gauge"}


def render(snapshot: Snapshot) -> bytes:
    """A snapshot in Prometheus's text format (`CONTENT_TYPE`), written by prometheus-client."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(lambda: snapshot))
    return generate_latest(registry)


class _Collector:
    """Gives prometheus-client what a snapshot holds, whenever it is asked to collect."""

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        for name, all_series in self._snapshot().items():
            definition = DEFINITIONS[name]
            if definition.kind == "histogram":
                histogram = HistogramMetricFamily(name, definition.help, labels=definition.labels)
                for labels, (total, *counts) in all_series:
                    histogram.add_metric(labels, _cumulative(definition.buckets, counts), total)
                yield histogram
                continue
            made = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
            family = made(name, definition.help, labels=definition.labels)
            for labels, (value,) in all_series:
                family.add_metric(labels, value)
            yield family


def _cumulative(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    names = [*map(str, bounds), "+Inf"]
    return list(zip(names, accumulate(counts), strict=True))


def prometheus_collector() -> _Collector:
    """For a program with a metrics page of its own: `prometheus_client.REGISTRY.register(prometheus_collector())`."""
    return _Collector(metrics.snapshot)


metrics = Metrics()
"""The metrics of this process."""

os.register_at_fork(after_in_child=metrics.reset)
