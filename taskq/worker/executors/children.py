"""A worker's side of one child process: starting it, asking it, killing it, finding out how it ended.

Its process group is its own, and is killed as a whole. That may be done as long as the child has not been waited for:
until then the system gives its number, which is its group's too, to no other process. So whoever is done with a child
buries it: kills what is left of the group, and only then waits for the child.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import ExitStack, suppress

from taskq.worker.executors.calls import Link

DIE_S_MAX = 1.0
"""How long a child may take to die, after its end of the link was closed."""

END_S_MAX = 5.0
"""How long a child may take to close what it has open, when it has nothing more to do."""

_POLL_MS_MAX = 2**31 - 1
"""As long as poll can wait at once."""

COMMAND = (sys.executable, "-m", "taskq.worker.executors.child")


class Unheard(Exception):
    """A child has ended without having read what it was asked."""


class Child:
    """`ask`, `is_well`, `hang_up` and `bury` are for the one thread that has it; `kill` is for any."""

    def __init__(self, process: subprocess.Popen[bytes], link: Link, lifeline: int) -> None:
        self.pid = process.pid
        self.idle_since = 0.0
        """When it last had something to do (monotonic)."""
        self.has_run = False
        """Whether it has answered a call."""
        self._process = process
        self._link = link
        self._pidfd = _open_pidfd(process.pid)
        self._fds = [fd for fd in (lifeline, self._pidfd) if fd is not None]
        self._events = select.poll()
        self._events.register(link, select.POLLIN)
        if self._pidfd is not None:  # a process that it forked may hold the link open when it has died
            self._events.register(self._pidfd, select.POLLIN)
        self._burying = threading.Lock()
        self._is_buried = False
        self._ends_by: float | None = None
        """When what is to end by itself must have (monotonic)."""
        _children.add(self)

    @classmethod
    def start(cls) -> Child:
        """Raises OSError if there is no memory, process or descriptor left for one."""
        with ExitStack() as theirs, ExitStack() as undo:
            our_link, their_link = Link.pair()
            theirs.callback(their_link.close)
            undo.callback(our_link.close)
            their_lifeline, our_lifeline = os.pipe()
            theirs.callback(os.close, their_lifeline)
            undo.callback(os.close, our_lifeline)
            passed = (their_link.fileno(), their_lifeline)
            process = subprocess.Popen(
                [*COMMAND, *map(str, passed)], stdin=subprocess.DEVNULL, pass_fds=passed, start_new_session=True
            )
            undo.pop_all()
            return cls(process, our_link, our_lifeline)

    def ask(self, message: bytes, timeout_s: float | None) -> bytes:
        """Send it a message, and wait for the answer.

        Raises TimeoutError; Unheard if it is gone, or does not read, and has not begun with this; EOFError if it is
        gone, and may have.
        """
        until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        try:
            self._link.send(message)
        except OSError as error:
            raise Unheard from error
        while (answer := self._link.take()) is None:
            left_ms = (until - time.monotonic()) * 1000
            ready = [fd for fd, _ in self._events.poll(math.ceil(max(0.0, min(left_ms, _POLL_MS_MAX))))]
            if not ready and time.monotonic() >= until:
                raise TimeoutError
            if ready and (self._link.fileno() not in ready or not self._read()):
                raise EOFError
        return answer

    def _read(self) -> bool:
        try:
            return self._link.read()
        except ConnectionResetError as error:
            raise Unheard from error

    def is_well(self) -> bool:
        """Whether it is there. Of one that was asked nothing."""
        return not self._events.poll(0)

    def kill(self) -> None:
        """At once, with all its group."""
        with self._burying:
            if not self._is_buried:
                self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS says the latter where only a dead one is left
            os.killpg(self.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """Let it end by itself: it has nothing more to do. Then bury it: it has END_S_MAX from now."""
        self._ends_by = time.monotonic() + END_S_MAX
        self._link.close()

    def bury(self) -> str:
        """Wait for its end, killing it if that takes long, and then what is left of its group. How it ended."""
        within_s = DIE_S_MAX if self._ends_by is None else max(0.0, self._ends_by - time.monotonic())
        has_ended = self._has_ended(within_s)
        with self._burying:
            self._kill()
            code = self._process.wait()
            self._is_buried = True
        self.let_go()
        return how(code) if has_ended else "broke its link to the worker"

    def _has_ended(self, within_s: float) -> bool:
        if self._pidfd is not None:
            end = select.poll()
            end.register(self._pidfd, select.POLLIN)
            return bool(end.poll(within_s * 1000))
        try:  # this does wait for it, and its number is free a moment too soon
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def let_go(self) -> None:
        """Close our ends. In a fork of the worker that is all there is to do: it has no children yet."""
        fds, self._fds = self._fds, []
        self._link.close()
        for fd in fds:
            os.close(fd)


def how(code: int) -> str:
    """How a process ended, as the end of a sentence about it. `code` is that of `Popen`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}{' (by the system, if memory ran out)' if -code == signal.SIGKILL else ''}"


def _open_pidfd(pid: int) -> int | None:
    """What becomes readable when the process ends, where there is such a thing."""
    if sys.platform == "linux":
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None


_children: weakref.WeakSet[Child] = weakref.WeakSet()


def _let_go() -> None:
    for child in list(_children):
        child.let_go()
    _children.clear()


os.register_at_fork(after_in_child=_let_go)
