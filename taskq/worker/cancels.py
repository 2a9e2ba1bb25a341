"""Which invocations are cancelled: a worker reads the control topic from its start, and then what is new in it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque

from taskq.broker.port import Broker, Lost, TopicPartition
from taskq.control import cancelled_by
from taskq.errors import BrokerUnavailable, TopicNotFound
from taskq.message import Id
from taskq.topics import CONTROL, CONTROL_MS

_log = logging.getLogger("taskq.worker")

REMOTE_INTERVAL_S = 0.1
"""How often to look where that costs a round trip."""

_TP = TopicPartition(CONTROL, 0)


class Cancels:
    """`ids` is what is cancelled. Belongs to one thread, but others may look into `ids`.

    Where looking costs a round trip, which may take long while brokers come and go, a thread of its own looks.
    """

    def __init__(self, broker: Broker) -> None:
        self.ids: dict[Id, int] = {}
        """Since when, in milliseconds since 1970."""
        broker.producer().send_many(CONTROL, [])  # so that there is one to read
        self._reader = broker.reader()
        self._next = 0
        self._is_remote = broker.is_remote
        self._found: deque[dict[Id, int]] = deque()
        """By the thread, and not taken yet."""
        self._error: Exception | None = None
        """Why the thread can look no more."""
        self._has_looked = threading.Event()
        self._is_closed = threading.Event()

    def refresh(self) -> set[Id]:
        """Take what has come since the last time: the ids that are new, or again. Must cost next to nothing.

        The first time it waits until all has been read: nothing that is cancelled is to be started. Raises what makes
        it impossible to look.
        """
        if not self._is_remote:
            return self._take(self._read())
        if not self._has_looked.is_set():
            threading.Thread(target=self._look, name="taskq-cancels", daemon=True).start()
            self._has_looked.wait()
        if self._error is not None:
            raise self._error
        new: dict[Id, int] = {}
        while self._found:
            new |= self._found.popleft()
        return self._take(new)

    def close(self) -> None:
        """Look no more. The thread ends with what it asks just now, which nobody waits for."""
        self._is_closed.set()

    def _look(self) -> None:
        """The thread."""
        try:
            while not self._is_closed.is_set():
                if found := self._read():
                    self._found.append(found)
                self._has_looked.set()
                self._is_closed.wait(REMOTE_INTERVAL_S)
        except Exception as error:
            self._error = error
        finally:
            self._has_looked.set()

    def _read(self) -> dict[Id, int]:
        """What has been cancelled since the last time."""
        new: dict[Id, int] = {}
        try:
            while self._reader.bounds(_TP).end > self._next:
                records = self._reader.read(_TP, self._next, lost=_tell)
                if not records:
                    break
                self._next = records[-1].offset + 1
                new |= {ident: record.timestamp_ms for record in records if (ident := cancelled_by(record)) is not None}
        except TopicNotFound:  # deleted: what is cancelled next makes it anew
            self._next = 0
        except BrokerUnavailable as error:  # whether it comes back in time, who commits finds out
            if not self._is_closed.is_set():
                _log.warning("what has been cancelled can't be read yet: %s", error)
        return new

    def _take(self, new: dict[Id, int]) -> set[Id]:
        if not new:
            return set()
        oldest_ms = int(time.time() * 1000) - CONTROL_MS
        fresh = {ident for ident, since_ms in new.items() if since_ms > self.ids.get(ident, -1)}
        self.ids.update(new)
        for ident in [ident for ident, since_ms in self.ids.items() if since_ms < oldest_ms]:
            del self.ids[ident]
        return fresh & self.ids.keys()


def _tell(lost: Lost) -> None:
    _log.error("some of what was cancelled is lost: %s", lost)
