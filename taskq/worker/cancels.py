"""Which invocations are cancelled: a worker reads the control topic from its start, and then what is new in it."""

from __future__ import annotations

from taskq.broker.port import Broker, TopicPartition
from taskq.control import cancelled_by
from taskq.errors import BrokerError
from taskq.message import Id
from taskq.topics import CONTROL

_TP = TopicPartition(CONTROL, 0)


class Cancels:
    """`ids` is what is cancelled. Belongs to one thread, but others may look into `ids`."""

    def __init__(self, broker: Broker) -> None:
        self.ids: set[Id] = set()
        broker.producer().send_many(CONTROL, [])  # so that there is one to read
        self._reader = broker.reader()
        self._next = 0

    def refresh(self) -> set[Id]:
        """Read what has come since the last time: the ids that are new. Looking costs next to nothing."""
        new: set[Id] = set()
        try:
            while self._reader.bounds(_TP).end > self._next:
                records = self._reader.read(_TP, self._next)
                if not records:
                    break
                self._next = records[-1].offset + 1
                new |= {ident for record in records if (ident := cancelled_by(record)) is not None}
        except BrokerError:  # deleted, or damaged: nothing more is cancelled, and work goes on
            self._next = 0
        new -= self.ids
        self.ids |= new
        return new
