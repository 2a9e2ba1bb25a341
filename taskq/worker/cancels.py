"""Which invocations are cancelled: a worker reads the control topic from its start, and then what is new in it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from taskq.broker.port import Broker, Lost, Record, TopicPartition
from taskq.control import cancelled_by
from taskq.errors import BrokerUnavailable
from taskq.message import Id
from taskq.topics import CONTROL, CONTROL_MS

_log = logging.getLogger("taskq.worker")

WAIT_S = 0.5
"""How long to wait for what is cancelled next, where it is waited for. The thread ends no sooner."""

FIRST_WAIT_S = 0.1

AGAIN_S = 5.0
"""When to look again, if the broker can't be asked: it has taken its time to say so."""

_TP = TopicPartition(CONTROL, 0)


class Cancels:
    """`ids` is what is cancelled. Belongs to one thread, but others may look into `ids`.

    Where the broker is another process, which may be away for long, a thread of its own waits for what comes.
    """

    def __init__(self, broker: Broker) -> None:
        self.ids: dict[Id, int] = {}
        """Since when, in milliseconds since 1970."""
        broker.producer().send_many(CONTROL, [])  # so that there is one to read
        self._follower = broker.follower(_TP, _tell)
        self._is_remote = broker.is_remote
        self._found: deque[dict[Id, int]] = deque()
        """By the thread, and not taken yet."""
        self._thread: threading.Thread | None = None
        self._look_at = 0.0
        self._is_away = False
        self._error: Exception | None = None
        """Why the thread can look no more."""
        self._has_looked = threading.Event()
        self._is_closed = threading.Event()

    def are_known(self) -> bool:
        """Whether all has been read that was cancelled before. As long as it has not, nothing is to be started; this
        waits a little for it."""
        if not self._is_remote or self._has_looked.is_set():
            return True
        if self._thread is None:
            self._thread = threading.Thread(target=self._look, name="taskq-cancels", daemon=True)
            self._thread.start()
        return self._has_looked.wait(FIRST_WAIT_S)

    def refresh(self) -> set[Id]:
        """Take what has come since the last time: the ids that are new, or again. Must cost next to nothing.

        Raises what makes it impossible to look.
        """
        if self._error is not None:
            raise self._error
        new: dict[Id, int] = {}
        while not self._is_remote and (records := self._read(0)):
            new |= _cancelled_by(records)
        while self._found:
            new |= self._found.popleft()
        return self._take(new)

    def close(self) -> None:
        """Look no more. The thread ends with what it waits for just now; nobody waits for that."""
        self._is_closed.set()

    def _look(self) -> None:
        """The thread."""
        try:
            while not self._is_closed.is_set():
                if records := self._read(WAIT_S):
                    self._found.append(_cancelled_by(records))
                elif self._is_away:
                    self._is_closed.wait(AGAIN_S)
                else:
                    self._has_looked.set()
        except Exception as error:
            self._error = error
        finally:
            self._has_looked.set()
            self._follower.close()

    def _read(self, timeout: float) -> list[Record]:
        """What has come since the last time; nothing, for a while, where the broker can't be asked."""
        if time.monotonic() < self._look_at:
            return []
        try:
            records, self._is_away = self._follower.read(timeout), False
            return records
        except BrokerUnavailable as error:
            self._look_at, self._is_away = time.monotonic() + AGAIN_S, True
            if not self._is_closed.is_set():
                _log.warning("what has been cancelled can't be read yet: %s", error)
            return []

    def _take(self, new: dict[Id, int]) -> set[Id]:
        if not new:
            return set()
        oldest_ms = int(time.time() * 1000) - CONTROL_MS
        fresh = {ident for ident, since_ms in new.items() if since_ms > self.ids.get(ident, -1)}
        self.ids.update(new)
        for ident in [ident for ident, since_ms in self.ids.items() if since_ms < oldest_ms]:
            del self.ids[ident]
        return fresh & self.ids.keys()


def _cancelled_by(records: list[Record]) -> dict[Id, int]:
    """The ids, and since when."""
    return {ident: record.timestamp_ms for record in records if (ident := cancelled_by(record)) is not None}


def _tell(lost: Lost) -> None:
    _log.error("some of what was cancelled is lost: %s", lost)
