"""Keys in order while workers come and go and tasks fail: `python -m tests.soak.order --keys 1000 --each 50`."""

from __future__ import annotations

import argparse
import random
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

from tests.processes import bench, wait_until


@frozen
class Ordered:
    """What came of it."""

    keys: int
    runs: int
    lost: int
    retries: int
    repeats: int
    """Runs again of what had run, just after a worker was killed."""
    disorders: tuple[str, ...]
    workers: int

    def __str__(self) -> str:
        return (
            f"{self.keys:,} keys, {self.runs:,} runs by {self.workers} workers: {self.lost} lost, "
            f"{len(self.disorders)} keys out of order, {self.retries:,} retries, {self.repeats} repeats after kills"
        )


def run(folder: Path, keys: int, each: int, changes: int, seed: int = 1) -> Ordered:
    """`changes` times, a worker of three is killed or drained and another started."""
    draw = random.Random(seed)
    total = keys * each
    with bench(folder, "tests.apps.soak") as here:
        workers = [here.start_worker("soak").wait_ready() for _ in range(3)]
        here.task("ordered").map([(f"k{key}", number) for number in range(each) for key in range(keys)])
        for change in range(changes):
            here.wait_for_lines(total * (change + 1) // (changes + 2), within_s=120)
            victim = workers.pop(draw.randrange(3))
            if draw.random() < 0.5:
                victim.kill()
            else:
                assert victim.stop() == 0
            workers.append(here.start_worker("soak").wait_ready())
        wait_until(lambda: here.unfinished("soak") == 0, "all is finished", within_s=180)
        lines = [line.split() for line in here.audited()]
        for worker in workers:
            worker.stop()
    history: defaultdict[str, list[int]] = defaultdict(list)
    retries = 0
    for what, _, attempt, *_ in lines:
        key, _, number = what.partition(":")
        history[key].append(int(number))
        retries += int(attempt) - 1
    disorders = tuple(key for key, numbers in history.items() if not in_order(numbers))
    lost = sum(each - len(set(numbers)) for numbers in history.values()) + (keys - len(history)) * each
    repeats = sum(len(numbers) - len(set(numbers)) for numbers in history.values())
    return Ordered(keys, len(lines), lost, retries, repeats, disorders, 3 + changes)


def in_order(numbers: list[int]) -> bool:
    """Whether nothing ran before what came before it: a number may come again only right after a kill, with those that
    followed it: then the history goes back, and on from there without a gap."""
    seen = -1
    position = -1
    for number in numbers:
        if number > position + 1:
            return False
        position = number
        seen = max(seen, number)
    return seen == position


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.order", description=__doc__)
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--each", type=int, default=50)
    parser.add_argument("--changes", type=int, default=6)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="taskq-soak-") as folder:
        found = run(Path(folder), asked.keys, asked.each, asked.changes)
    print(found)
    return 0 if not found.lost and not found.disorders else 1


if __name__ == "__main__":
    sys.exit(main())
