"""Guarantee 1: when `delay()` has returned, a crash of any taskq process loses nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import WAIT_S, bench

PUBLISHER = """
import os
from tests.apps.audit import note
for number in range(10**9):
    note.delay(number)
    os.write(1, b"x")  # only now has the caller been told
"""


def test_what_was_published_before_the_publisher_was_killed_is_run(tmp_path: Path) -> None:
    told = 0
    with bench(tmp_path) as here:
        for kill in range(3):
            with subprocess.Popen(
                [sys.executable, "-c", PUBLISHER],
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parents[2],
                env={**os.environ, **here.environment},
            ) as publisher:
                assert publisher.stdout is not None
                told += len(publisher.stdout.read(300 + 37 * kill))
                publisher.send_signal(signal.SIGKILL)
                told += len(publisher.stdout.read())
                publisher.wait(WAIT_S)
        worker = here.start_worker("feed").wait_ready()
        lines = here.wait_for_lines(told)
        assert worker.stop() == 0
        # The last call of each publisher may have reached the log without its caller being told.
        assert told <= len(lines) <= told + 3


def test_what_is_published_while_nobody_works_waits(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.task("note").map([(number,) for number in range(1000)])
        here.app.close()
        here.start_worker("feed")
        assert sorted(map(int, here.wait_for_lines(1000))) == list(range(1000))
