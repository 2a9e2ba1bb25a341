"""The wire between a supervisor and each of its workers: a pair of connected sockets, one line of JSON a message.

    supervisor -> worker    {"ask": 7}
    supervisor -> worker    {"stop": true}: at once
    worker -> supervisor    {"answer": 7, "metrics": {...}, "health": [...], "ready": [...]}
    worker -> supervisor    the same with "answer": 0, unasked: the first, the last, when it ends, and one
                            before that when it has drained

It is also how they hear of each other's death, however sudden: the kernel closes a dead process's sockets, and the
other side reads an end of file. So a worker whose supervisor was killed drains and ends instead of working on unseen.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

import msgspec
from attrs import evolve, frozen

from taskq.metrics import Snapshot

_log = logging.getLogger(__name__)


EXIT_RECYCLE = 75
"""A worker that ends with this wants to be replaced at once. EX_TEMPFAIL of sysexits.h: nothing else here uses it."""

SEND_SECONDS_MAX = 1
"""A supervisor that doesn't take an answer for this long gets no more: no worker waits for it in order to end."""


@frozen
class Report:
    """How a worker is. `health` and `ready` are reasons why not."""

    metrics: Snapshot
    health: tuple[str, ...]
    ready: tuple[str, ...]
    drain_timeout_s: float = 0.0
    """How long it drains when it is told to. Only it knows: its app may say so in code."""
    why: str = ""
    """Why it is to be replaced, if it is."""
    is_drained: bool = False
    """Whether it has nothing left to do but to end."""
    sources: tuple[str, ...] = ()
    """Files of Python that it has imported and that may be edited; for `--reload`."""
    answer: int = 0


@frozen
class _Ask:
    ask: int = 0
    stop: bool = False


_encode = msgspec.json.Encoder().encode
_decode_report = msgspec.json.Decoder(Report).decode
_decode_ask = msgspec.json.Decoder(_Ask).decode


class Child:
    """The supervisor's end. `ask` and `collect` are called by one thread at a time; `drain` when the worker is gone."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._received = b""
        self._asked = 0
        self.last: Report | None = None
        """The newest report, whenever it came."""
        self.is_open = True
        """Whether more may come."""

    def ask(self) -> None:
        """Ask for a report, without waiting. A worker that doesn't read its questions is not asked again."""
        self._asked += 1
        self._say(_Ask(self._asked))

    def stop(self) -> None:
        """Tell it to stop at once."""
        self._say(_Ask(stop=True))

    def _say(self, what: _Ask) -> None:
        try:
            self._socket.send(_encode(what) + b"\n")
        except (BlockingIOError, OSError):
            _log.debug("a worker can't be told anything", exc_info=True)

    def fileno(self) -> int:
        return self._socket.fileno()

    def collect(self, deadline: float) -> Report | None:
        """Wait for the answer until `deadline` (of time.monotonic); None if it didn't come."""
        while self.last is None or self.last.answer != self._asked:
            readable, _, _ = select.select([self._socket], [], [], max(0.0, deadline - time.monotonic()))
            if not readable or not self._receive():
                return None
        return self.last

    def newest(self) -> Report | None:
        """The newest report, without waiting."""
        while self._receive():
            pass
        return self.last

    def drain(self) -> Report | None:
        """Read what a worker said before it ended; return its last report. Closes this end."""
        self.newest()
        self._socket.close()
        return self.last

    def _receive(self) -> bool:
        """Read what is there. False: nothing is, or will be."""
        try:
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self.is_open = bool(data)
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            try:
                self.last = _decode_report(line)
            except msgspec.MsgspecError:
                _log.exception("a worker says what is no report")
        return bool(data)


class Parent:
    """The worker's end: answers from a daemon thread until the supervisor is gone, and then calls `on_gone` once;
    `on_stop` when it is to stop at once."""

    def __init__(
        self,
        fd: int,
        report: Callable[[], Report],
        on_gone: Callable[[], None],
        on_stop: Callable[[], object] = lambda: None,
    ) -> None:
        os.set_inheritable(fd, False)
        self._socket = socket.socket(fileno=fd)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_SECONDS_MAX, 0))
        self._report = report
        self._on_gone = on_gone
        self._on_stop = on_stop
        self._sending = threading.Lock()
        threading.Thread(target=self._serve, name="taskq-supervisor-link", daemon=True).start()

    def tell(self) -> None:
        """Report unasked: as the first thing, and as the last before the process ends."""
        self._send(0)

    def _serve(self) -> None:
        try:
            with self._socket.makefile("rb") as questions:
                for line in questions:
                    asked = _decode_ask(line)
                    if asked.stop:
                        self._on_stop()
                    else:
                        self._send(asked.ask)
        except OSError:
            _log.debug("the link to the supervisor broke", exc_info=True)
        except Exception:
            _log.exception("the link to the supervisor can't be served any more")
        finally:
            self._on_gone()

    def _send(self, answer: int) -> None:
        try:
            message = _encode(evolve(self._report(), answer=answer)) + b"\n"
        except Exception:  # what is looked at is the broker's, too
            _log.exception("the supervisor can't be told how this worker is")
            return
        with self._sending:
            try:
                self._socket.sendall(message)
            except OSError:
                _log.debug("the supervisor is gone or does not listen", exc_info=True)
                with contextlib.suppress(OSError):  # what went out may be half a line: nothing may follow it
                    self._socket.shutdown(socket.SHUT_WR)
