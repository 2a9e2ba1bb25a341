"""Guarantee 5, where a task forked: a child that lives on keeps none of its dead parent's locks.

And one that ends leaves its parent everything.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

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


FORKS_CHILDREN_THAT_END = """
import os, sys, threading
from taskq.broker.embedded import EmbeddedBroker
broker = EmbeddedBroker(sys.argv[1], partitions_default=1)
producer = broker.producer()
producer.send("feed", b"x")
consumer = broker.consumer("feed", ["feed"])
assert consumer.poll(0).assigned

def publish():
    while True:
        producer.send("feed", b"x")

for _ in range(2 * (sys.argv[2] == "while threads publish")):
    threading.Thread(target=publish, daemon=True).start()
descriptors = [int(name) for name in os.listdir("/dev/fd")]
for turn in range(8):
    child = os.fork()
    if child == 0:
        import faulthandler
        faulthandler.dump_traceback_later(20, exit=True)
        precious = open(f"{sys.argv[3]}{turn}", "wb+")
        for fd in descriptors:
            if fd > 2 and fd != precious.fileno():
                os.dup2(precious.fileno(), fd)
        consumer.leave()
        consumer.close()
        if turn % 2:
            broker.close()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.path.getsize(f"{sys.argv[3]}{turn}") == 0
members = broker.admin().describe_group("feed").members
assert list(members) == [consumer.member_id], members
assert os.listdir(f"{sys.argv[1]}/waiters/groups/feed") == [consumer.member_id]
assert "0" in os.listdir(f"{sys.argv[1]}/waiters/topics/feed")
os._exit(0)
"""


@pytest.mark.parametrize("when", ["while nothing happens", "while threads publish"])
def test_a_child_that_ends_leaves_its_parent_everything(tmp_path: Path, when: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FORKS_CHILDREN_THAT_END, str(tmp_path / "log"), when, str(tmp_path / "precious")],
        capture_output=True,
        text=True,
        timeout=WAIT_S * 2,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
