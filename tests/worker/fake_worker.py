"""A worker process without the work: says what the test wants to see through the real link to its supervisor.

Run as `fake_worker.py FD BEHAVIOUR...`. Each start and each signal adds a line to the file $FAKE_LOG.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from queue import SimpleQueue

from taskq.definitions import BACKLOG
from taskq.metrics import Metrics, Sample
from taskq.worker.link import EXIT_RECYCLE, Parent, Report


def say(what: str) -> None:
    fd = os.open(os.environ["FAKE_LOG"], os.O_WRONLY | os.O_APPEND)
    os.write(fd, f"{os.getpid()} {what}\n".encode())
    os.close(fd)


def end_with(parent: int) -> None:
    """However the test ends and whatever hangs here: a worker without a supervisor is gone a moment later."""
    alive = threading.Event()
    while os.getppid() == parent:
        alive.wait(0.5)
    alive.wait(10)
    os._exit(3)


def end_early(fd: int, behaviour: set[str]) -> int | None:
    """What to end with before it is any more than started."""
    for exit_code in (0, 1, 2, EXIT_RECYCLE):
        if f"exit-{exit_code}" in behaviour:
            if exit_code == EXIT_RECYCLE:
                Parent(fd, lambda: Report({}, (), (), why="it is full"), lambda: None).tell()
            elif "tells" in behaviour:
                Parent(fd, lambda: Report({}, (), (), sources=("/code/broken.py",)), lambda: None).tell()
            return exit_code
    return None


def main(fd: int, behaviour: set[str]) -> int:
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    exit_code = end_early(fd, behaviour)
    if exit_code is not None:
        say("started")
        return exit_code
    metrics = Metrics()
    metrics.commits.labels("feed").inc(100)
    metrics.add_source(lambda: [Sample(BACKLOG, ("feed", "posts", "0"), 7)])
    stopped: SimpleQueue[None] = SimpleQueue()  # not an event: a signal's handler may come in the middle of its wait
    hang = threading.Event()

    def report() -> Report:
        if "mute" in behaviour:
            hang.wait()
        ready = ("no partition is held",) if "not-ready" in behaviour else ()
        drain_timeout_s = 60.0 if "slow" in behaviour else 0.0
        sources = ("/code/shop.py",) * (200_000 if "wordy" in behaviour else 1)
        return Report(
            metrics.snapshot(), (), ready, drain_timeout_s, is_drained="lingering" in behaviour, sources=sources
        )

    def on_signal(number: int, frame: object) -> None:
        say(signal.Signals(number).name)
        if not behaviour & {"stubborn", "deaf"}:
            stopped.put(None)

    def on_stop() -> None:
        say("at-once")
        if "deaf" in behaviour:
            stopped.put(None)

    def on_gone() -> None:
        say("orphaned")
        stopped.put(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    link = Parent(fd, report, on_gone, on_stop)
    if "mute" not in behaviour:
        link.tell()
    say("started")
    stopped.get()
    if "slow" in behaviour:
        threading.Event().wait(1.5)
    metrics.commits.labels("feed").inc(1)
    link.tell()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), set(sys.argv[2:])))
