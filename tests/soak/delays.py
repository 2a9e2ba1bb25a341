"""Delayed invocations, workers killed: none lost, none early, soon after they are due, in little memory.

`python -m tests.soak.delays --count 100000 --kills 2`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

from tests.processes import Bench, WorkerProcess, bench, wait_until


@frozen
class Delayed:
    """What came of it."""

    count: int
    ran: int
    twice: int
    early: int
    late_ms_p50: float
    late_ms_p99: float
    late_ms_max: float
    rss_before: int
    rss_most: int

    def __str__(self) -> str:
        return (
            f"{self.count:,} delayed: {self.count - self.ran} lost, {self.early} early, {self.twice} twice; late by "
            f"p50 {self.late_ms_p50:.1f} ms, p99 {self.late_ms_p99:.1f} ms, at most {self.late_ms_max:.0f} ms; "
            f"worker RSS {self.rss_before / 1e6:.0f} MB idle, {self.rss_most / 1e6:.0f} MB at most"
        )


def rss_of(worker: WorkerProcess) -> int:
    """Bytes; 0 if it has ended."""
    try:
        pages = Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * 4096


class Started:
    """When each invocation started first, read from the audit as it grows."""

    def __init__(self, audit: Path) -> None:
        self.at: dict[str, float] = {}
        self.runs = 0
        self._audit = audit.open("rb")
        self._rest = b""

    def update(self) -> int:
        """Read what is new; how many have started."""
        *lines, self._rest = (self._rest + self._audit.read()).split(b"\n")
        for line in lines:
            _, ident, _, _, _, at = line.decode().split()
            self.at.setdefault(ident, float(at))
        self.runs += len(lines)
        return len(self.at)

    def close(self) -> None:
        self._audit.close()


def publish(here: Bench, count: int, shortest_s: float, longest_s: float, seed: int) -> dict[str, float]:
    """Publish `count` that are due between so many seconds from now; id -> when each is due."""
    draw = random.Random(seed)
    task = here.task("quick")
    due: dict[str, float] = {}
    for number in range(count):
        delay = draw.uniform(shortest_s, longest_s)
        ident = f"d-{number}"
        due[ident] = time.time() + delay
        task.options(delay=delay, id=ident).delay()
    return due


def run(folder: Path, count: int, kills: int, longest_s: float = 20.0, seed: int = 1) -> Delayed:
    """Publish, kill the worker `kills` times while they wait, start another each time, and look at the audit."""
    with bench(folder, "tests.apps.soak") as here:
        worker = here.start_worker("soak").wait_ready()
        rss_before = rss_most = rss_of(worker)
        began = time.monotonic()
        due = publish(here, count, 1.0, longest_s, seed)
        span = longest_s - 1.0
        killed = 0
        started = Started(here.audit)

        def watch() -> bool:
            nonlocal worker, killed, rss_most
            rss_most = max(rss_most, rss_of(worker))
            if killed < kills and time.monotonic() - began > 1.0 + span * (killed + 1) / (kills + 1):
                worker.kill()
                killed += 1
                worker = here.start_worker("soak").wait_ready()
            return started.update() >= count and killed == kills

        wait_until(watch, f"{count} have run", within_s=longest_s * 3 + count / 2000 + 60)
        wait_until(lambda: here.unfinished("soak") == 0, "all is finished")
        started.update()
        started.close()
        assert worker.stop() == 0
    late = sorted((at - due[ident]) * 1000 for ident, at in started.at.items())
    return Delayed(
        count,
        len(started.at.keys() & due.keys()),
        started.runs - len(started.at),
        sum(ms < 0 for ms in late),
        late[len(late) // 2],
        late[int(len(late) * 0.99)],
        late[-1],
        rss_before,
        rss_most,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.delays", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--longest", type=float, default=20.0)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="taskq-soak-") as folder:
        found = run(Path(folder), asked.count, asked.kills, asked.longest)
    print(found)
    return 0 if found.ran == found.count and not found.early else 1


if __name__ == "__main__":
    sys.exit(main())
