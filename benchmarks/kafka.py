"""taskq on Kafka beside plain confluent-kafka loops and taskiq: `python -m benchmarks.kafka [--quick]`.

One node of Kafka, started here on this machine and stopped again, serves all runs; each has a topic and a group of its
own. It needs Java, as the tests that need a Kafka do (docs/testing.md).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks import environment

if TYPE_CHECKING:
    from benchmarks.measures import Numbers
    from benchmarks.peer import Peer
    from benchmarks.results import Results

KINDS = ("publish", "threads", "bulk", "drain")
PEERS = ("kafka_taskq", "kafka_plain", "kafka_taskiq")
REPETITIONS = 3
PUBLISH_S = 3.0
SENT_MAX = 200_000
_BEGIN = "<!-- kafka: begin (written by `python -m benchmarks.kafka --write-readme`) -->"
_END = "<!-- kafka: end -->"
_TITLES = {
    "publish": "one by one, /s",
    "threads": "one by one from 16 threads, /s",
    "bulk": "in bulk by 10,000, /s",
    "drain": "drained, 1 process, /s",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kafka", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short repetition: to see that it works, not to quote")
    parser.add_argument("--broker", metavar="HOST:PORT", help="a Kafka that runs already, instead of one of our own")
    parser.add_argument("--measure", action="append", choices=KINDS, help="this one only; may be given several times")
    parser.add_argument("--write-readme", action="store_true", help="put the table into benchmarks/README.md")
    options = parser.parse_args()
    environment.enter(sys.argv[1:], "benchmarks.kafka")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.broker:
        run(options, options.broker, "a Kafka that ran already")
        return
    from tests.kafka.cluster import Cluster
    from tests.kafka.jars import KAFKA_VERSION

    with TemporaryDirectory(prefix="taskq-bench-kafka-") as folder:
        cluster = Cluster.start(Path(folder), 1)
        try:
            run(options, cluster.bootstrap, f"Kafka {KAFKA_VERSION}, one node on this machine, a heap of 512 MB")
        finally:
            cluster.close()


def run(options: argparse.Namespace, servers: str, kafka: str) -> None:
    """Measure, and print the table."""
    from benchmarks import machine, peers
    from benchmarks.board import Board
    from benchmarks.report import write_readme
    from benchmarks.results import Description, Results

    with TemporaryDirectory(prefix="taskq-bench-") as directory:
        os.environ |= {"BENCH_DIR": directory, "BENCH_BOARD": f"{directory}/board", "BENCH_KAFKA": servers}
        Board.create(Path(directory, "board"), 1)
        found = [peers.load(name) for name in PEERS]
    told = {**machine.describe(found), "kafka": kafka}
    del told["redis"], told["files"]
    results = Results(told, {peer.name: Description.of(peer) for peer in found})
    for kind in options.measure or KINDS:
        for _ in range(1 if options.quick else REPETITIONS):
            for peer in found:
                if _can(peer, kind):
                    outcome = _measure(peer, kind, options.quick)
                    results.add(kind, peer.name, outcome)
                    print(f"{time.strftime('%H:%M:%S')}  {kind:8} {peer.name:13} {outcome}", flush=True)
    text = _table(results)
    print(text)
    if options.write_readme:
        write_readme(text, _BEGIN, _END)


def _can(peer: Peer, kind: str) -> bool:
    return {"threads": peer.sender, "bulk": peer.publish_many}.get(kind, peer) is not None


def _measure(peer: Peer, kind: str, quick: bool) -> Numbers | str:
    """One run: its rate, or why there is none."""
    from benchmarks.peer import WorkerPlan
    from benchmarks.runs import RunFailed, drain, publisher, stage

    count = peer.messages // (5 if quick else 1)
    try:
        with stage(peer, max(count, SENT_MAX)) as on:
            if kind != "drain":
                seconds = 1.0 if quick else PUBLISH_S
                return publisher(on, kind, "noop", count if kind == "bulk" else SENT_MAX, seconds)
            publisher(on, "publish" if peer.publish_many is None else "bulk", "noop", count)
            drained = drain(on, WorkerPlan("noop", 1, peer.concurrency), count)
            return {"rate": drained.rate} | ({"missing": drained.missing} if drained.missing else {})
    except RunFailed as failure:
        return str(failure)


def _table(results: Results) -> str:
    """Rates, and what part of the plain loops' they are."""
    from benchmarks.report import table

    kinds = [kind for kind in KINDS if kind in results.runs]
    rows = []
    for name, peer in results.peers.items():
        row = [peer.title]
        for kind in kinds:
            rate, plain = (results.median(kind, one, "rate") for one in (name, "kafka_plain"))
            share = f" ({rate / plain:.0%})" if rate and plain and name != "kafka_plain" else ""
            row.append(f"{rate:,.0f}{share}" if rate else "")
        rows.append(row)
    settings = [(peer.title, peer.settings, peer.durability) for peer in results.peers.values()]
    parts = [
        table(["", *(_TITLES[kind] for kind in kinds)], rows),
        table(("", "settings", "durability"), settings),
        "\n".join(f"- {name}: {value}" for name, value in results.machine.items()),
    ]
    parts += [f"- failed: {name}, {kind}: {why}" for kind, by in results.failures.items() for name, why in by.items()]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
