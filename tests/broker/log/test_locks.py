from __future__ import annotations

import os
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
