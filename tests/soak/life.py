"""A long life: workers killed, added and drained at random while tasks succeed, fail, delay, wait and chain.

At the end every id that was published has exactly one outcome: it is done, or a dead letter, and not both.
`python -m tests.soak.life --seconds 600`; prints its seed.
"""

from __future__ import annotations

import argparse
import random
import secrets
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import define, field, frozen

from taskq import TaskQ
from taskq.broker.port import TopicPartition
from taskq.context import identify
from taskq.message import decode_envelope, format_id
from tests.processes import Bench, WorkerProcess, bench, wait_until
from tests.soak.delays import rss_of

CHAIN = 5


@frozen
class Lived:
    """What came of it."""

    seed: int
    published: int
    done: int
    dead: int
    none: tuple[str, ...]
    """Ids without an outcome."""
    both: tuple[str, ...]
    """Ids that are done and dead."""
    wrong: tuple[str, ...]
    """Ids whose outcome is not the one they should have."""
    unknown: tuple[str, ...]
    """Ids that nobody published."""
    repeats: int
    """Runs again of what was done, after a worker was killed."""
    kills: int
    drains: int
    rss_growth_per_hour: float
    """Of the worker that lived all along, in bytes, over the second half."""
    rss_last: int

    @property
    def is_well(self) -> bool:
        return not (self.none or self.both or self.wrong or self.unknown)

    def __str__(self) -> str:
        bad = {name: len(getattr(self, name)) for name in ("none", "both", "wrong", "unknown")}
        return (
            f"seed {self.seed}: {self.published:,} published, {self.done:,} done, {self.dead:,} dead, {bad}; "
            f"{self.repeats} repeats after {self.kills} kills and {self.drains} drains; the steady worker's RSS "
            f"{self.rss_last / 1e6:.0f} MB, growing {self.rss_growth_per_hour / 1e6:.1f} MB an hour"
        )


@define
class Life:
    """The state of one run."""

    here: Bench
    draw: random.Random
    expected: dict[str, str] = field(factory=dict)
    """Id -> the outcome it must have."""
    workers: list[WorkerProcess] = field(factory=list)
    kills: int = 0
    drains: int = 0
    rss: list[tuple[float, int]] = field(factory=list)

    def publish(self) -> None:
        """A handful of everything."""
        number = len(self.expected)
        task = self.here.task
        for index in range(20):
            self._one("quick" if index % 2 else "quick_async", f"q-{number}-{index}", (), "done")
        self._one("slow", f"s-{number}", (self.draw.uniform(0, 0.3),), "done")
        self._one("flaky", f"f-{number}", (self.draw.randrange(1, 4),), "done")
        self._one("doomed", f"x-{number}", (), "dead")
        self._one("later", f"l-{number}", (2,), "done")
        if self.draw.random() < 0.2:
            self._one("over_time", f"o-{number}", (), "dead")
        delay = self.draw.uniform(0.1, 10)
        task("quick").options(id=f"d-{number}", delay=delay).delay()
        self.expected[f"d-{number}"] = "done"
        task("chain").options(id=f"c{number}-0").delay(CHAIN)
        self.expected |= {f"c{number}-{link}": "done" for link in range(CHAIN + 1)}

    def _one(self, name: str, ident: str, args: tuple[object, ...], outcome: str) -> None:
        self.here.task(name).options(id=ident).delay(*args)
        self.expected[ident] = outcome

    def change(self) -> None:
        """Kill one, drain one, or add one; the first lives on."""
        others = self.workers[1:]
        kind = self.draw.random()
        if kind < 0.4 and others:
            victim = self.draw.choice(others)
            self.workers.remove(victim)
            victim.kill()
            self.kills += 1
        elif kind < 0.7 and others:
            leaver = self.draw.choice(others)
            self.workers.remove(leaver)
            # One that has not come so far as to handle it is simply ended.
            assert leaver.stop() in (0, -signal.SIGTERM), leaver.log
            self.drains += 1
        if len(self.workers) < 4:
            self.workers.append(self.here.start_worker("soak"))


def run(folder: Path, seconds: float, seed: int, rounds_per_s: float = 10.0) -> Lived:
    """Publish for `seconds`, with a change every few, and then wait until all has ended."""
    with bench(folder, "tests.apps.soak") as here:
        life = Life(here, random.Random(seed))
        life.workers = [here.start_worker("soak").wait_ready() for _ in range(3)]
        began = time.monotonic()
        next_change = began + 3
        while (now := time.monotonic()) < began + seconds:
            life.publish()
            if now >= next_change:
                life.change()
                next_change = now + life.draw.uniform(1, 8)
            life.rss.append((now - began, rss_of(life.workers[0])))
            pause = began + len(life.rss) / rounds_per_s
            wait_until(lambda until=pause: time.monotonic() >= until, "the next round")  # type: ignore[misc]
        wait_until(lambda: here.unfinished("soak") == 0 and waiting(here) == 0, "all has ended", within_s=120)
        done = Counter(line.split()[1] for line in here.audited() if line.startswith("done "))
        dead = Counter(dead_ids(here))
        for worker in life.workers:
            worker.stop()
    outcomes = dict.fromkeys(done, "done") | dict.fromkeys(dead, "dead")
    expected = life.expected
    return Lived(
        seed,
        len(expected),
        len(done),
        len(dead),
        tuple(sorted(expected.keys() - outcomes.keys())),
        tuple(sorted(done.keys() & dead.keys())),
        tuple(sorted(one for one in expected if outcomes.get(one, expected[one]) != expected[one])),
        tuple(sorted(outcomes.keys() - expected.keys())),
        sum(done.values()) - len(done) + sum(dead.values()) - len(dead),
        life.kills,
        life.drains,
        slope(life.rss[len(life.rss) // 2 :]) * 3600,
        life.rss[-1][1],
    )


def waiting(here: Bench) -> int:
    """How many are on the ladder."""
    with TaskQ("looks", broker=here.broker) as app:
        admin = app.broker.admin()
        topics = [topic for topic in admin.topics() if topic.startswith("__taskq.delay.")]
        committed = admin.describe_group("__taskq.delays").committed
        ends = {
            TopicPartition(topic, number): bounds.end
            for topic in topics
            for number, bounds in enumerate(admin.describe_topic(topic).partitions)
        }
        return sum(end - (committed[tp].offset if tp in committed else 0) for tp, end in ends.items())


def dead_ids(here: Bench) -> list[str]:
    """The ids of the dead letters."""
    with TaskQ("looks", broker=here.broker) as app:
        if "soak.dead" not in app.broker.admin().topics():
            return []
        reader, found = app.broker.reader(), []
        for number in range(app.broker.admin().partitions("soak.dead")):
            tp, offset = TopicPartition("soak.dead", number), 0
            while records := reader.read(tp, offset):
                offset = records[-1].offset + 1
                found += [format_id(identify(decode_envelope(one.value), one, tp)) for one in records]
        return found


def slope(points: list[tuple[float, int]]) -> float:
    """Least squares: how much a second."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.life", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=None)
    asked = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    with TemporaryDirectory(prefix="taskq-soak-") as folder:
        found = run(Path(folder), asked.seconds, seed)
    print(found)
    for name in ("none", "both", "wrong", "unknown"):
        if getattr(found, name):
            print(name, *getattr(found, name)[:20])
    return 0 if found.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
