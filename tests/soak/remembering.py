"""Kafka forgets a group without members; a worker that is there has it remember which dead letters are resolved.

`python -m tests.soak.remembering` starts a Kafka that forgets after a minute: it takes three.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from taskq import Reject, TaskQ
from taskq.worker.deadoffice import ALL, list_dead, purge_dead
from taskq.worker.reminding import remind
from tests.kafka.cluster import Cluster, wait
from tests.kafka.urls import url
from tests.working import wait_finished, working

FORGETFUL = {"offsets.retention.minutes": 1, "offsets.retention.check.interval.ms": 1000}
LETTERS = 3


def main() -> int:
    with TemporaryDirectory() as folder:
        cluster = Cluster.start(Path(folder), properties=FORGETFUL)
        try:
            return run(cluster)
        finally:
            cluster.close()


def run(cluster: Cluster) -> int:
    """0 if it was remembered for as long as somebody said it again, and no longer."""
    with TaskQ("remembering", broker=url(cluster)) as app:

        @app.task
        def refuse() -> None:
            raise Reject

        def listed() -> int:
            return len(list(list_dead(app.broker, "default")))

        refuse.map([()] * LETTERS)
        with working(app) as worker:
            wait_finished(worker)
        purge_dead(app.broker, "default", ALL)
        began = time.monotonic()
        while time.monotonic() < began + 90:
            assert not wait(lambda: listed() > 0, 20), "it was forgotten, though it had been said again"
            remind(app.broker, "default")
        print(
            f"after {time.monotonic() - began:.0f} s, said again every 20 s: {listed()} of {LETTERS} are listed again"
        )
        assert wait(lambda: listed() == LETTERS, 100), "this Kafka does not forget: nothing was shown"
        print(f"{time.monotonic() - began:.0f} s: nobody says it any more, and {LETTERS} are")
    return 0


if __name__ == "__main__":
    sys.exit(main())
