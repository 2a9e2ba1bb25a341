"""A whole run: every measure for every peer, interleaved (A B C A B C), each in fresh processes."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import asdict

from benchmarks import machine, peers, redis_server, report
from benchmarks.board import Board
from benchmarks.measures import MEASURES, Measure, attempt
from benchmarks.peer import Peer
from benchmarks.results import Description, Results

REPETITIONS = 3
RESULTS = Path(__file__).with_name("results.json")


def run(options: argparse.Namespace) -> int:
    """Measure, print the tables, keep the numbers; the exit code (1: nothing could be measured)."""
    with TemporaryDirectory(prefix="taskq-bench-") as directory:
        # The peers' modules are imported here too, for what they say of themselves; nothing is ever sent from here.
        os.environ |= {"BENCH_DIR": directory, "BENCH_BOARD": f"{directory}/board"}
        Board.create(Path(directory, "board"), 1)
        found, skipped = _find(options.only or peers.NAMES)
    results = Results(machine.describe(found), {peer.name: Description.of(peer) for peer in found}, skipped)
    measures = [measure for measure in MEASURES if not options.measure or measure.name in options.measure]
    _measure(found, measures, results, options.quick)
    RESULTS.write_text(json.dumps(asdict(results), indent=1))
    tables = report.tables(results)
    print(tables)
    if options.write_readme:
        report.write_readme(tables)
    return 0 if results.runs else 1


def _find(names: Sequence[str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that can run here, and why the others can't."""
    found, skipped = [], {}
    for name in names:
        try:
            peer = peers.load(name)
        except ImportError as missing:
            skipped[name] = str(missing)
            continue
        if peer.needs_redis and redis_server.find() is None:
            skipped[name] = "redis-server is not installed"
        else:
            found.append(peer)
    return found, skipped


def _measure(found: Sequence[Peer], measures: Sequence[Measure], results: Results, quick: bool) -> None:
    began = time.monotonic()
    for measure in measures:
        for _ in range(REPETITIONS if measure.repeated and not quick else 1):
            for peer in found:
                if not measure.applies(peer):
                    continue
                outcome = attempt(measure, peer, quick)
                results.add(measure.name, peer.name, outcome)
                told = outcome if isinstance(outcome, str) else "  ".join(f"{k} {v:,.4g}" for k, v in outcome.items())
                print(f"{time.monotonic() - began:5.0f} s  {measure.name:14} {peer.name:12} {told}", flush=True)
