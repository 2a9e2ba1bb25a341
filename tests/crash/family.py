"""Child processes that may be killed at any moment, and what they reported until then."""

from __future__ import annotations

import faulthandler
import logging
import os
import selectors
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from attrs import define, field

from tests.crash.roles import Report

SILENCE_S = 30.0
"""A process that has said nothing for so long hangs."""

_READ_BYTES = 1 << 20


class Failed(AssertionError):
    """What was promised does not hold."""


@define(eq=False)
class Child:
    """One process. `lines` is what it reported, word by word."""

    name: str
    pid: int
    fd: int
    is_doomed: bool = False
    lines: list[list[str]] = field(factory=list)
    heard_at: float = field(factory=time.monotonic)
    killed_at: int = 0
    """Nanoseconds, just before the kill; 0 while it lives."""
    _rest: bytes = b""

    def take(self) -> bool:
        """Read what it has written; False at its end."""
        data = os.read(self.fd, _READ_BYTES)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.lines += [line.decode().split() for line in lines]
        self.heard_at = time.monotonic()
        return bool(data)


class Family:
    """All processes of a run. Forked from this process, which must never have opened a broker."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.living: list[Child] = []
        self.died: list[Child] = []
        """Those that were doomed, and died of that. Whoever looks empties it."""

    def start(self, name: str, role: Callable[[Report], None], *, is_doomed: bool = False) -> Child:
        """Fork a process that does `role` and ends; one that is doomed may die of SIGKILL by itself."""
        theirs_out, theirs_in = os.pipe()
        pid = os.fork()
        if not pid:
            _be(role, Report(theirs_in))
        os.close(theirs_in)
        child = Child(name, pid, theirs_out, is_doomed)
        self._selector.register(theirs_out, selectors.EVENT_READ, child)
        self.living.append(child)
        return child

    def listen(self, seconds: float) -> None:
        """Collect reports for so long. Raises Failed if a child ends by itself, or hangs."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in self._selector.select(left):
                if not key.data.take():
                    code = os.waitstatus_to_exitcode(self._bury(key.data))
                    if code != -signal.SIGKILL or not key.data.is_doomed:
                        raise Failed(f"{key.data.name} ended by itself with {code}: see above")
                    self.died.append(key.data)
            for child in self.living:
                if time.monotonic() - child.heard_at > SILENCE_S:
                    raise Failed(f"{child.name} hangs: it has said nothing for {SILENCE_S} s")

    def kill(self, child: Child) -> None:
        """SIGKILL, and read what it had reported."""
        child.killed_at = time.monotonic_ns()
        os.kill(child.pid, signal.SIGKILL)
        while child.take():
            pass
        status = self._bury(child)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise Failed(f"{child.name} had ended by itself with {os.waitstatus_to_exitcode(status)}: see above")

    def wait(self, child: Child, within_s: float) -> None:
        """Until it ends by itself, in order."""
        deadline = time.monotonic() + within_s
        while child in self.living:
            for key, _ in self._selector.select(max(0.0, deadline - time.monotonic())):
                if not key.data.take():
                    status = self._bury(key.data)
                    if status:
                        raise Failed(f"{key.data.name} ended with {os.waitstatus_to_exitcode(status)}: see above")
            if time.monotonic() > deadline:
                raise Failed(f"{child.name} has not ended within {within_s} s; it said: {child.lines[-3:]}")

    def _bury(self, child: Child) -> int:
        self._selector.unregister(child.fd)
        os.close(child.fd)
        self.living.remove(child)
        return os.waitpid(child.pid, 0)[1]

    def end(self) -> None:
        """Leave nothing running. Who hangs says where, first."""
        for child in list(self.living):
            if time.monotonic() - child.heard_at > SILENCE_S:
                os.kill(child.pid, signal.SIGABRT)
            else:
                os.kill(child.pid, signal.SIGKILL)
            self._bury(child)
        self._selector.close()


@contextmanager
def family() -> Iterator[Family]:
    made = Family()
    try:
        yield made
    finally:
        made.end()


def _be(role: Callable[[Report], None], report: Report) -> None:
    """In the child: never returns."""
    code = 1
    try:
        faulthandler.enable()  # SIGABRT says where it hangs
        logging.disable(logging.WARNING)  # that a writer died while appending is no news here
        role(report)
        code = 0
    except BrokenPipeError:
        pass  # the parent is gone
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
