"""Guarantee 5, where a task forked: a child that lives on keeps none of its dead parent's locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from taskq import TaskQ
from tests.processes import WAIT_S, bench

FORKS_AND_IS_KILLED = """
import os, sys, threading
from taskq import TaskQ
app = TaskQ("forks", broker=sys.argv[1])
@app.task(topic="feed", group="feed")
def nothing(): ...
nothing.delay()
consumer = app.broker.consumer("feed", ["feed"])
while not consumer.poll(10).fetched:
    pass
child = os.fork()
if child == 0:
    nothing.delay()  # a child may publish: with a broker of its own
    print(os.getpid(), flush=True)
    threading.Event().wait(60)
    os._exit(0)
os.waitpid(child, os.WNOHANG)
threading.Event().wait(60)
"""


def test_the_child_of_a_killed_worker_holds_nothing_up(tmp_path: Path) -> None:
    with (
        bench(tmp_path) as here,
        subprocess.Popen(
            [sys.executable, "-c", FORKS_AND_IS_KILLED, here.broker], stdout=subprocess.PIPE, text=True
        ) as parent,
    ):
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait(WAIT_S)
        try:
            with TaskQ("looks", broker=here.broker) as app:
                assert app.broker.admin().describe_group("feed").members == {}
            here.task("note").map([(number,) for number in range(80)])
            here.start_worker("feed").wait_ready()
            here.wait_for_lines(80, within_s=5)
        finally:
            os.kill(child, signal.SIGKILL)
