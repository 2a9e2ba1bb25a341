"""The numbers that taskq is to reach, beside what was measured. Most are ratios, for machines differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from attrs import frozen

from benchmarks.results import Results

_FORMATS: dict[str, Callable[[float], str]] = {
    "x": lambda value: f"{value:.1f}x",
    "/s": lambda value: f"{value:,.0f}/s",
    "us": lambda value: f"{value:.1f} us",
    "MB": lambda value: f"{value:.0f} MB",
    "ms": lambda value: f"{value:.2f} ms",
    "%": lambda value: f"{value:.1%}",
}


@frozen
class Target:
    """`measured` (None: not measured in this run) is to be at least, or at most, `bound`; both in `unit`."""

    what: str
    measured: float | None
    bound: float
    unit: str
    at_least: bool = True

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def wanted(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {_FORMATS[self.unit](self.bound)}"

    @property
    def told(self) -> str:
        return "" if self.measured is None else _FORMATS[self.unit](self.measured)


def targets(results: Results) -> list[Target]:
    return [*_publish(results), *_drain(results), *_wait(results)]


def _ratio(ours: float | None, theirs: float | None, scale: float = 1.0) -> float | None:
    return ours / theirs * scale if ours and theirs else None


def _publish(results: Results) -> Iterator[Target]:
    measure, number = "drain_def_1", "publish_rate"
    rate = results.median(measure, "taskq", number)
    on_redis = results.best_peer(measure, number, on_redis=True)
    yield Target("publish: to the fastest peer on Redis", _ratio(rate, on_redis), 10, "x")
    yield Target("publish: to Huey on SQLite", _ratio(rate, results.median(measure, "huey_sqlite", number)), 2, "x")
    yield Target("publish: rate", rate, 100_000, "/s")
    p50_us = results.median(measure, "taskq", "publish_p50_us")
    yield Target("publish: p50", p50_us, 10, "us", at_least=False)
    floor_us = results.median("floors", "taskq", "publish_us")
    yield Target("publish: p50, to encode + flock + write", _ratio(p50_us, floor_us), 4, "x", at_least=False)
    yield Target("publish in bulk: rate", results.median("drain_bulk_1", "taskq", number), 400_000, "/s")


def _drain(results: Results) -> Iterator[Target]:
    rate = results.median("drain_def_1", "taskq", "rate")
    on_redis = results.best_peer("drain_def_1", "rate", on_redis=True)
    huey, celery = (results.median("drain_def_1", peer, "rate") for peer in ("huey_sqlite", "celery"))
    yield Target("drain `def`, 1 process: to the fastest peer on Redis", _ratio(rate, on_redis), 25, "x")
    yield Target("drain `def`, 1 process: to Huey on SQLite", _ratio(rate, huey), 10, "x")
    yield Target("drain `def`, 1 process: to Celery", _ratio(rate, celery), 100, "x")
    yield Target("drain `def`, 1 process: rate", rate, 200_000, "/s")
    floor_us = results.median("floors", "taskq", "drain_us")
    floor = _ratio(1e6, rate, 1 / floor_us) if floor_us else None
    yield Target("drain `def`, 1 process: to decode + call", floor, 12, "x", at_least=False)
    rate = results.median("drain_async_1", "taskq", "rate")
    fastest = results.best_peer("drain_async_1", "rate")
    yield Target("drain `async def`, 1 process: to the fastest peer", _ratio(rate, fastest), 25, "x")
    yield Target("drain `async def`, 1 process: rate", rate, 200_000, "/s")


def _wait(results: Results) -> Iterator[Target]:
    for name, number, bound in (("p50", "p50_us", 0.3), ("p99", "p99_us", 1.0)):
        latency_us = results.median("latency", "taskq", number)
        latency_ms = None if latency_us is None else latency_us / 1e3
        yield Target(f"idle latency: {name}", latency_ms, bound, "ms", at_least=False)
    rate, small = results.median("backlog", "taskq", "rate"), results.median("drain_bulk_1", "taskq", "rate")
    yield Target("drain of 10 million: to that of 500,000", _ratio(rate, small), 0.9, "x")
    peak, idle = results.median("backlog", "taskq", "rss_peak"), results.median("idle", "taskq", "rss")
    grown_mb = (peak - idle) / 1e6 if peak and idle else None
    yield Target("drain of 10 million: RSS above an idle worker's", grown_mb, 50, "MB", at_least=False)
    yield Target("idle worker: CPU", results.median("idle", "taskq", "cpu_share"), 0.01, "%", at_least=False)
    for what, measure in (("10 ms sleeps, 32 threads", "io_threads"), ("10 ms sleeps, 200 async", "io_async")):
        yield Target(f"{what}: of ideal", results.median(measure, "taskq", "share"), 0.95, "%")
    for what, number, bound in (("import taskq", "import_s", 150), ("taskq --help", "help_s", 250)):
        seconds = results.median("start", "taskq", number)
        yield Target(f"`{what}`", None if seconds is None else seconds * 1e3, bound, "ms", at_least=False)
