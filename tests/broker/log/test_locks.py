from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from taskq.broker.log.files import RealFiles
from taskq.broker.log.locks import close_lockable, lock, open_lockable, try_lock


def test_a_copy_of_the_descriptor_holds_no_lock_once_it_is_closed(tmp_path: Path) -> None:
    """Such as that of a child which is forked while it is being closed."""
    files, path = RealFiles(), f"{tmp_path}/locked"
    held = open_lockable(files, path, create=True)
    lock(held)
    copy = os.dup(held)
    close_lockable(files, held)
    other = open_lockable(files, path)
    assert try_lock(other)
    close_lockable(files, other)
    os.close(copy)


FORKS = """
import os, signal
from taskq.broker.log.segment import OPEN

class Opened:
    def shut(self):
        return True

OPEN.add(Opened())
with OPEN._mutex:  # as another thread would have it at this moment
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        OPEN.add(Opened())
        os._exit(0 if len(OPEN._opened) == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_waits_for_no_thread_of_its_parent() -> None:
    subprocess.run([sys.executable, "-c", FORKS], timeout=50, check=True)
