"""Three Kafka nodes, of which one after the other is killed: `python -m tests.soak.rolling --seconds 120`.

A process publishes, two workers run. Each topic is on all three nodes, and what is acknowledged is on two of them at
least. Nothing may be lost, and publishing may wait but not fail. What runs twice is what had not been committed when
its partition was taken from a worker: when the group's coordinator is killed, a session may be over before the next one
is found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

from taskq import TaskQ
from tests.kafka.cluster import Cluster, wait
from tests.kafka.urls import url
from tests.processes import bench

INVOCATIONS = 50_000
PROPERTIES = {"min.insync.replicas": 2}

PUBLISHER = """
import sys, time
from tests.apps import audit
broker, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
audit.app.configure(broker=broker)
began, failures, longest = time.monotonic(), 0, 0.0
for number in range(0, count, 10):
    at = time.monotonic()
    while True:
        try:
            audit.note.map([(one,) for one in range(number, min(number + 10, count))])
            break
        except Exception as error:
            failures += 1
            print(f"failed: {error}", flush=True)
    now = time.monotonic()
    longest = max(longest, now - at)
    time.sleep(max(0.0, began + seconds * number / count - now))
print(failures, longest)
"""


@frozen
class Rolled:
    """What came of it."""

    published: int
    failures: int
    """How often publishing gave up."""
    longest_s: float
    """How long a call that publishes took at most."""
    lost: int
    repeats: int
    kills: int
    deaths: int
    """Workers that ended by themselves."""
    rebalances: int
    """How often a worker had partitions taken away or given."""

    @property
    def is_well(self) -> bool:
        return not (self.lost or self.failures or self.deaths)

    def __str__(self) -> str:
        return (
            f"{self.published:,} published while {self.kills} nodes were killed: {self.lost} lost, {self.repeats} "
            f"repeats in {self.rebalances} changes of who has what, {self.deaths} workers died; publishing failed "
            f"{self.failures} times and took {self.longest_s:.1f} s at most"
        )


def run(folder: Path, seconds: float, every_s: float = 20.0, count: int = INVOCATIONS) -> Rolled:
    """Kill a node every `every_s` seconds for `seconds`, each after the one before is well again."""
    cluster = Cluster.start(_made(folder / "kafka"), 3, PROPERTIES)
    try:
        with bench(folder, broker=url(cluster)) as here:
            with TaskQ("creates", broker=here.broker) as app:
                app.broker.admin().create_topic("feed", 8, replication=3)
            workers = [here.start_worker("feed").wait_ready() for _ in range(2)]
            publisher = subprocess.Popen(
                [sys.executable, "-c", PUBLISHER, here.broker, str(count), str(seconds)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            try:
                kills = _roll(cluster, seconds, every_s)
                said, _ = publisher.communicate(timeout=180)
            finally:
                publisher.kill()
                publisher.wait()
            print(*said.splitlines()[:-1], sep="\n")
            wait(lambda: len(set(here.audited())) >= count, 120, every_s=0.5)
            ran = Counter(here.audited())
            deaths = sum(worker.process.poll() is not None for worker in workers)
            rebalances = sum(worker.log.count(" holds ") for worker in workers)
            for worker in workers:
                if worker.process.poll() is None:
                    worker.stop()
                else:
                    print(worker.log[-5000:])
    finally:
        cluster.close()
    failures, longest = said.splitlines()[-1].split()
    lost = count - len(ran)
    return Rolled(count, int(failures), float(longest), lost, ran.total() - len(ran), kills, deaths, rebalances)


def _roll(cluster: Cluster, seconds: float, every_s: float) -> int:
    """Kill one after the other; how many."""
    began, kills = time.monotonic(), 0
    while (next_at := began + every_s * (kills + 0.5)) < began + seconds:
        _until(next_at)
        node = cluster.node(kills % 3 + 1)
        node.kill()
        kills += 1
        _until(time.monotonic() + every_s / 4)
        node.start()
        cluster.wait_ready()
        wait(lambda: _all_in_sync(cluster), 60, every_s=0.5)
    return kills


def _all_in_sync(cluster: Cluster) -> bool:
    """Whether all partitions are on all nodes again: else the next kill would take the second of three."""
    return "Topic:" not in cluster.tool("kafka-topics", "--describe", "--under-replicated-partitions")


def _until(at: float) -> None:
    wait(lambda: time.monotonic() >= at, at - time.monotonic() + 5)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.rolling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0)
    asked = parser.parse_args()
    with TemporaryDirectory(prefix="taskq-soak-") as folder:
        found = run(Path(folder), asked.seconds)
    print(found)
    return 0 if found.is_well else 1


if __name__ == "__main__":
    sys.exit(main())
