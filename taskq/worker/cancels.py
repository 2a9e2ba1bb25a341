"""Which invocations are cancelled: a worker reads the control topic from its start, and then what is new in it."""

from __future__ import annotations

import logging
import time

from taskq.broker.port import Broker, Lost, TopicPartition
from taskq.control import cancelled_by
from taskq.errors import BrokerUnavailable, TopicNotFound
from taskq.message import Id
from taskq.topics import CONTROL, CONTROL_MS

AGAIN_S = 5.0
"""When to look again, if the broker can't be asked: it has taken its time to say so."""

_log = logging.getLogger("taskq.worker")

REMOTE_INTERVAL_S = 0.1
"""How often to look where that costs a round trip."""

_TP = TopicPartition(CONTROL, 0)


class Cancels:
    """`ids` is what is cancelled. Belongs to one thread, but others may look into `ids`."""

    def __init__(self, broker: Broker) -> None:
        self.ids: dict[Id, int] = {}
        """Since when, in milliseconds since 1970."""
        broker.producer().send_many(CONTROL, [])  # so that there is one to read
        self._reader = broker.reader()
        self._next = 0
        self._interval_s = REMOTE_INTERVAL_S if broker.is_remote else 0.0
        self._look_at = 0.0

    def refresh(self) -> set[Id]:
        """Read what has come since the last time: the ids that are new, or again. Looking must cost next to nothing."""
        now = time.monotonic()
        if now < self._look_at:
            return set()
        self._look_at = now + self._interval_s
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
            _log.warning("what has been cancelled can't be read yet: %s", error)
            self._look_at = time.monotonic() + AGAIN_S
        if new:
            oldest_ms = int(time.time() * 1000) - CONTROL_MS
            fresh = {ident for ident, since_ms in new.items() if since_ms > self.ids.get(ident, -1)}
            self.ids.update(new)
            for ident in [ident for ident, since_ms in self.ids.items() if since_ms < oldest_ms]:
                del self.ids[ident]
            return fresh & self.ids.keys()
        return set()


def _tell(lost: Lost) -> None:
    _log.error("some of what was cancelled is lost: %s", lost)
