"""Guarantee 10: a full disk refuses publishing with `StorageFull`, keeps what is there readable, and recovers when
space returns; messages are at most 1 MiB; what a worker holds is bounded."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from taskq import errors
from taskq.broker.port import MESSAGE_BYTES_MAX
from tests.processes import bench, wait_until

FILLS_THE_DISK = """
import resource, signal, sys
from taskq import TaskQ
from taskq.errors import StorageFull
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a file over the limit is then an error of the write, EFBIG
app = TaskQ("filler", broker=sys.argv[1])
@app.task
def store(text: str) -> None: ...
store.options(topic="one").delay("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
published = 0
try:
    while True:
        store.options(topic="one").delay("x" * 1000)
        published += 1
except StorageFull as error:
    print("full after", published, "at least", published > 100, ":", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.options(topic="one").delay("after")
admin, reader = app.broker.admin(), app.broker.reader()
print(sum(bounds.end for bounds in admin.describe_topic("one").partitions) - published)
"""


def test_a_full_disk_refuses_publishing_and_recovers(tmp_path: Path) -> None:
    """The limit is of the file's size here; log tests do the same with ENOSPC and EDQUOT."""
    ran = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(tmp_path / "log")], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    full, extra = ran.stdout.splitlines()
    assert "at least True" in full
    assert "try again" in full
    assert extra == "2", "the one before, the one after, and no more than was acknowledged"


def test_a_message_over_the_limit_is_refused_before_anything_is_published(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        store = here.task("store")
        store.delay("x" * (MESSAGE_BYTES_MAX - 200))
        with pytest.raises(errors.MessageTooLarge, match="1048576 is the limit"):
            store.delay("x" * MESSAGE_BYTES_MAX)
        with pytest.raises(errors.MessageTooLarge):
            store.map([("small",), ("x" * MESSAGE_BYTES_MAX,)])
        assert here.unfinished("feed") == 1


def test_the_largest_message_can_still_become_a_dead_letter(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        here.task("store_and_fail").delay("x" * (MESSAGE_BYTES_MAX - 200))
        here.start_worker("feed")
        wait_until(lambda: len(here.dead_letters("feed")) == 1, "the dead letter")
        wait_until(lambda: here.unfinished("feed") == 0, "it is finished")


def test_a_large_backlog_takes_no_memory_of_a_worker(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        worker = here.start_worker("feed", "-c", "4").wait_ready()
        idle = rss_bytes(worker.process.pid)
        for name in ("a", "b", "c", "d"):
            here.task("wait_for_file").delay(name)
        here.wait_for_lines(4)
        for _ in range(20):
            here.task("store").map([("x" * 1000,)] * 5000)
        wait_until(lambda: "100000" in str(here.unfinished("feed") - 4), "a backlog of 100,000")
        assert rss_bytes(worker.process.pid) - idle < 50_000_000
        for name in ("a", "b", "c", "d"):
            (tmp_path / name).touch()
        wait_until(lambda: here.unfinished("feed") == 0, "all is finished")
        assert rss_bytes(worker.process.pid) - idle < 50_000_000
        worker.process.send_signal(signal.SIGTERM)


def test_what_waits_for_a_limit_takes_bounded_memory_of_a_worker(tmp_path: Path) -> None:
    with bench(tmp_path) as here:
        worker = here.start_worker("feed", "-c", "4").wait_ready()
        idle = rss_bytes(worker.process.pid)
        for _ in range(16):
            here.task("store_slowly").map([("x" * 1_000_000,)] * 16)
        worker.wait_for("group feed is too far ahead of its slowest invocations")
        here.task("note").delay(1)
        here.wait_for_lines(1)
        assert rss_bytes(worker.process.pid) - idle < 150_000_000
        assert here.unfinished("feed") >= 250
        worker.process.send_signal(signal.SIGTERM)


def rss_bytes(pid: int) -> int:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()
