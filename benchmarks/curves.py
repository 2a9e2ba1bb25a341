"""taskq's own curves: `python -m benchmarks.curves [--quick] [--write-readme]`. About five minutes; no peers.

1. Backlog: a worker that is up and has run something is stopped (SIGSTOP) while N no-ops are published in bulk, then
   goes on; timed is from there until all have run. A shared machine's speed swings by two within seconds, so small
   backlogs are repeated, between the large ones, and a fixed loop is timed on the other core a hundred times a
   second: "at equal speed" is the rate divided by the speed of that loop.
2. fsync: publishing with `durability="fsync"` by batch size, and one by one from many threads and processes at once,
   who share fsyncs; beside it the disk's own speed for the same bytes, a write and an fdatasync for each batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from attrs import frozen

from benchmarks import peers
from benchmarks.board import Board
from benchmarks.peer import Peer, WorkerPlan
from benchmarks.processes import usage
from benchmarks.report import table, write_readme
from benchmarks.runs import RunFailed, publisher, stage, wait_first, worker
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.log.batch import encode_many
from taskq.broker.port import Message
from taskq.config import Durability

_BACKLOGS = (10_000, 100_000, 1_000_000, 10_000_000)
_TIMEOUT_S = 180.0
_BATCHES = (1, 4, 16, 64, 256, 1000)
_SENDERS = (1, 2, 4, 8, 16, 32)
_VALUE = b"x" * 100
_SECONDS = 1.5
_SETTLE_S = 1.0
_PROBE_EVERY_S = 0.01
_PROBE_TURNS = 10_000
_BEGIN = "<!-- curves: begin (written by `python -m benchmarks.curves --write-readme`) -->"
_END = "<!-- curves: end -->"


@frozen
class Drained:
    """One backlog: rates in invocations a second, the machine's speed meanwhile, memory above that of idling."""

    published: float
    rate: float
    speed: float
    rss_above_idle: int

    @property
    def at_equal_speed(self) -> float:
        return self.rate / self.speed


def drain(peer: Peer, count: int) -> Drained:
    """Publish `count` no-ops to a worker that is stopped, let it go on, and wait until all have run."""
    with stage(peer, count) as on, worker(on, WorkerPlan("noop", 1, peer.concurrency)) as started:
        publisher(on, "publish", "noop", 2)
        wait_first(on)
        time.sleep(_SETTLE_S)
        on.board.flags[:2] = bytes(2)
        (pid,) = (process.pid for process in started)
        os.kill(pid, signal.SIGSTOP)
        try:
            published = publisher(on, "bulk", "noop", count, _TIMEOUT_S)
        finally:
            idle = usage([pid])
            began = time.perf_counter()
            os.kill(pid, signal.SIGCONT)
        speed = _wait(on.board, count, began)
        elapsed_s, after = time.perf_counter() - began, usage([pid])
    # The board's flags are mapped by the worker, one byte for each: they are the harness's, not its own.
    return Drained(published["rate"], count / elapsed_s, speed, after.rss_peak - idle.rss - count)


def _wait(board: Board, count: int, began: float) -> float:
    """Return when all have run; the mean speed of the machine meanwhile."""
    low, speeds = 0, [_speed()]
    while (low := board.first_unset(low, count)) < count:
        if time.perf_counter() - began > _TIMEOUT_S:
            raise RunFailed(f"{count - board.done(count)} of {count} had not run after {_TIMEOUT_S:.0f} s")
        if time.perf_counter() - began > len(speeds) * _PROBE_EVERY_S:
            speeds.append(_speed())
        time.sleep(0.0005)
    return len(speeds) / sum(1 / speed for speed in speeds)


def _speed() -> float:
    """Millions of turns a second of a loop that does next to nothing."""
    began, sink = time.perf_counter(), 0
    for turn in range(_PROBE_TURNS):
        sink += turn
    return _PROBE_TURNS / (time.perf_counter() - began) / 1e6


def backlogs(peer: Peer, sizes: Sequence[int], repetitions: int) -> dict[int, list[Drained]]:
    """Every size, small ones between the large ones."""
    results: dict[int, list[Drained]] = {size: [] for size in sizes}
    for large in sizes:
        for size in sizes:
            if size == large or size <= 100_000:
                for _ in range(repetitions if size <= 100_000 else 1):
                    results[size].append(drain(peer, size))
                    print(f"backlog {size:>10,}  {results[size][-1]}", flush=True)
    return results


def backlog_table(results: dict[int, list[Drained]]) -> str:
    def middle(size: int, name: str) -> float:
        return float(median([getattr(one, name) for one in results[size]]))

    first = min(results)
    rows = [
        (
            f"{size:,}",
            f"{middle(size, 'published'):,.0f}",
            f"{middle(size, 'rate'):,.0f}",
            f"{middle(size, 'rate') / middle(first, 'rate'):.2f}x",
            f"{middle(size, 'at_equal_speed') / middle(first, 'at_equal_speed'):.2f}x",
            f"{middle(size, 'rss_above_idle') / 1e6:.0f}",
        )
        for size in sorted(results)
    ]
    head = ("backlog", "published in bulk, /s", "drained, /s", "to the first", "at equal speed", "RSS above idle, MB")
    return table(head, rows)


# -- fsync


def _until(seconds: float, call: Callable[[], object]) -> tuple[int, float]:
    began, count = time.perf_counter(), 0
    while (elapsed_s := time.perf_counter() - began) < seconds:
        call()
        count += 1
    return count, elapsed_s


def _raw(directory: str, batch: int) -> float:
    """Batches a second: the bytes of `batch` records written at the end of a file, then fdatasync."""
    data = bytes(8) + encode_many([Message(_VALUE)] * batch, 0)
    fd = os.open(f"{directory}/raw-{batch}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    sync = getattr(os, "fdatasync", os.fsync)

    def one() -> None:
        os.write(fd, data)
        sync(fd)

    count, elapsed_s = _until(_SECONDS, one)
    os.close(fd)
    return count / elapsed_s


def _open(directory: str) -> EmbeddedBroker:
    return EmbeddedBroker(directory, durability=Durability("fsync"), partitions_default=1)


def _batched(directory: str, batch: int) -> float:
    """Batches a second, each returned once it is on stable storage."""
    broker = _open(f"{directory}/log-{batch}")
    producer, messages = broker.producer(), [Message(_VALUE)] * batch
    producer.send_many("fsync", messages)
    count, elapsed_s = _until(_SECONDS, lambda: producer.send_many("fsync", messages))
    broker.close()
    return count / elapsed_s


def _send_alone(directory: str, counts: Any) -> None:
    broker = _open(directory)
    producer = broker.producer()
    producer.send("fsync", _VALUE)
    counts.put(_until(_SECONDS, lambda: producer.send("fsync", _VALUE))[0] / _SECONDS)
    broker.close()


def _together(directory: str, senders: int, kind: str) -> float:
    """Records a second that `senders` threads or processes publish one by one, each waiting for its own."""
    if kind == "processes":
        context = multiprocessing.get_context("spawn")
        counts = context.Queue()
        children = [context.Process(target=_send_alone, args=(directory, counts)) for _ in range(senders)]
        for child in children:
            child.start()
        total = sum([float(counts.get(timeout=60)) for _ in children])
        for child in children:
            child.join()
        return total
    broker = _open(directory)
    producer = broker.producer()
    producer.send("fsync", _VALUE)
    rates: list[float] = []

    def send() -> None:
        count, elapsed_s = _until(_SECONDS, lambda: producer.send("fsync", _VALUE))
        rates.append(count / elapsed_s)

    threads = [threading.Thread(target=send) for _ in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broker.close()
    return sum(rates)


def fsync_tables() -> Iterable[str]:
    with tempfile.TemporaryDirectory(prefix="taskq-bench-") as directory:
        rows = []
        raw_one = median([_raw(directory, 1) for _ in range(3)])
        for batch in _BATCHES:
            raw, ours = _raw(directory, batch), _batched(directory, batch)
            rows.append((f"{batch:,}", f"{ours:,.0f}", f"{ours * batch:,.0f}", f"{raw:,.0f}", f"{ours / raw:.2f}x"))
            print(rows[-1], flush=True)
        yield table(("records a batch", "batches, /s", "records, /s", "the disk's own, batches/s", "share"), rows)
        rows = []
        for senders in _SENDERS:
            threads = _together(f"{directory}/threads-{senders}", senders, "threads")
            processes = _together(f"{directory}/processes-{senders}", senders, "processes") if senders <= 8 else 0.0
            told = (f"{processes:,.0f}", f"{processes / raw_one:.2f}x") if processes else ("", "")
            rows.append((str(senders), f"{threads:,.0f}", f"{threads / raw_one:.2f}x", *told))
            print(rows[-1], flush=True)
        head = ("senders", "threads: records, /s", "to the disk's own", "processes: records, /s", "likewise")
        yield table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="up to 100,000, once: to see that it works, not to quote")
    parser.add_argument("--write-readme", action="store_true", help="put the tables into benchmarks/README.md")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="taskq-bench-") as directory:
        os.environ |= {"BENCH_DIR": directory, "BENCH_BOARD": f"{directory}/board"}
        Board.create(Path(directory, "board"), 1)
        peer = peers.load("taskq")
    sizes = [size for size in _BACKLOGS if not options.quick or size <= 100_000]
    drained = backlog_table(backlogs(peer, sizes, 1 if options.quick else 3))
    synced = "\n\n".join(fsync_tables())
    text = f"### Rate against backlog\n\n{drained}\n\n### fsync against batch size, and shared\n\n{synced}"
    print(text)
    if options.write_readme:
        write_readme(text, _BEGIN, _END)


if __name__ == "__main__":
    main()
