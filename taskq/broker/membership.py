"""Who is alive in a group: every member holds a flock on its own file as long as it lives.

There is no coordinator and no heartbeat. Whoever wants to know tries to take each member's lock: if it can be had, its
holder is dead, however it died, and its file is removed, as is what it left behind to be woken by.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress

from taskq.broker.log import names
from taskq.broker.log.files import Files, check_written
from taskq.broker.log.locks import close_lockable, lock, open_lockable, try_lock
from taskq.broker.wakeups import remove_if_dead, shared_link


class Membership:
    """One member's place in its group, and its view of the others. Not thread-safe."""

    def __init__(self, files: Files, root: str, group: str, member_id: str, topics: Sequence[str]) -> None:
        self._files = files
        self._root = root
        self._group = group
        self._id = member_id
        self._topics: dict[str, tuple[str, ...]] = {member_id: tuple(topics)}
        files.makedirs(names.members(root, group))
        files.makedirs(names.group_topics(root, group))
        self._path = f"{names.members(root, group)}/{member_id}"
        self._fd = self._create()

    def _create(self) -> int:
        while True:
            fd = open_lockable(self._files, self._path, create=True)
            lock(fd)
            # Somebody may have found the file before it was locked, taken it for a dead member's, and removed it.
            if os.fstat(fd).st_nlink:
                break
            close_lockable(self._files, fd)
        try:
            text = json.dumps(self._topics[self._id]).encode()
            check_written(self._files.pwrite(fd, text, 0), text, self._path)
        except OSError:  # others must not wait for a member that never came to be
            with suppress(OSError):
                self._files.unlink(self._path)
            close_lockable(self._files, fd)
            raise
        return fd

    def live(self) -> dict[str, tuple[str, ...]]:
        """Live members: id -> topics. This one is among them."""
        found = {self._id: self._topics[self._id]}
        for name in self._files.listdir(names.members(self._root, self._group)):
            if name != self._id:
                topics = probe(self._files, self._root, self._group, name, self._topics.get(name))
                if topics:
                    found[name] = topics
        self._topics = found
        return found

    def leave(self) -> None:
        with suppress(OSError):  # whoever finds it later finds it dead
            self._files.unlink(self._path)
        close_lockable(self._files, self._fd)


def probe(
    files: Files, root: str, group: str, member_id: str, known: tuple[str, ...] | None = None
) -> tuple[str, ...] | None:
    """The topics of a member if it is alive (`known`, if given, saves reading them), else None."""
    path = f"{names.members(root, group)}/{member_id}"
    try:
        fd = open_lockable(files, path)
    except FileNotFoundError:
        return None
    try:
        if try_lock(fd):
            _remove_wakeups(root, group, member_id, known or _read_last_topics(files, fd))
            with suppress(OSError):  # another one finds it again
                files.unlink(path)
            return None
        if known:
            return known
        return _read_topics(files, fd)  # None: it has only begun to join and will tell us
    finally:
        close_lockable(files, fd)


def _read_topics(files: Files, fd: int) -> tuple[str, ...] | None:
    text = files.pread(fd, files.size(fd), 0)
    return tuple(json.loads(text)) if text else None


def _read_last_topics(files: Files, fd: int) -> tuple[str, ...]:
    """Those of a dead member, which may not have got to writing them."""
    with suppress(ValueError):
        return _read_topics(files, fd) or ()
    return ()


def _remove_wakeups(root: str, group: str, member_id: str, topics: Sequence[str]) -> None:
    """Remove a dead member's FIFO and links. Not if it lives: it may have made its file and not locked it yet."""
    links = [shared_link(names.topic_waiters(root, topic), member_id) for topic in topics]
    for path in (f"{names.group_waiters(root, group)}/{member_id}", *links):
        with suppress(OSError):
            remove_if_dead(path)


def live_members(files: Files, root: str, group: str) -> dict[str, tuple[str, ...]]:
    """Live members of a group, for those who don't belong to it."""
    found = {}
    with suppress(FileNotFoundError):
        for name in files.listdir(names.members(root, group)):
            if topics := probe(files, root, group, name):
                found[name] = topics
    return found
