"""A rate limit over three workers, one of which leaves: `python -m tests.soak.rate --seconds 20`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

from tests.processes import bench, wait_until

RATE = 100


@frozen
class Rates:
    """Starts a second, over all workers."""

    with_three: float
    while_one_leaves: float
    """From before it was told to until after its partitions were others'."""
    with_two: float

    def __str__(self) -> str:
        return (
            f"wanted {RATE}/s; with three workers {self.with_three:.1f}/s, while one leaves "
            f"{self.while_one_leaves:.1f}/s, with two {self.with_two:.1f}/s"
        )

    @property
    def is_kept(self) -> bool:
        return all(
            0.95 * RATE <= rate <= 1.05 * RATE for rate in (self.with_three, self.while_one_leaves, self.with_two)
        )


def run(folder: Path, seconds: float) -> Rates:
    """Three phases of a third of `seconds` each."""
    phase = int(seconds * RATE / 3)
    with bench(folder, "tests.apps.soak") as here:
        for _ in range(3):
            here.start_worker("limited").wait_ready()
        here.task("limited").map([()] * (5 * phase + 10 * RATE))
        here.wait_for_lines(2 * RATE)  # they have settled who has what
        start = len(here.audited())
        here.wait_for_lines(start + 2 * phase, within_s=seconds * 3)
        leaves_at = len(here.audited())
        leaver = here.workers[0]
        assert leaver.stop() == 0
        wait_until(lambda: len(here.audited()) >= leaves_at + 2 * phase, "the others go on", within_s=seconds * 3)
        times = sorted(float(line.split()[-1]) for line in here.audited())
    middle = leaves_at
    return Rates(
        _rate(times[start : start + phase]),
        _rate(times[middle - phase // 2 : middle + phase // 2]),
        _rate(times[middle + phase // 2 : middle + phase // 2 + phase]),
    )


def _rate(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.rate", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="taskq-soak-") as folder:
        found = run(Path(folder), asked.seconds)
    print(found)
    return 0 if found.is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
