"""Has the brokers remember which dead letters are resolved.

That is the progress of a group of which nobody is a member for long (deadoffice.py), and Kafka forgets what a group has
committed a week after its last member has left (`offsets.retention.minutes`): all that was ever resolved would be
listed, counted and retried once more. So every worker says it again once a day: holding the topic, as who resolves
something does, it commits what is committed.
"""

from __future__ import annotations

import logging
import threading
from random import random

from taskq.broker.port import Broker
from taskq.errors import TaskqError
from taskq.topics import dead_topic
from taskq.worker.deadoffice import RESOLVED
from taskq.worker.delays import GROUP as MOVERS
from taskq.worker.holding import holding

REMIND_S = 24 * 3600.0
"""How often. The first time is soon after the start, but not for all at once."""

FIRST_S_MAX = 3600.0

WAIT_S = 60.0
"""How long to wait for whoever is at it just now."""

_log = logging.getLogger("taskq.worker")


class Reminder:
    """A thread, where the broker is one that forgets."""

    def __init__(self, broker: Broker, group: str) -> None:
        self._broker = broker
        self._group = group
        self._is_stopped = threading.Event()

    def start(self) -> None:
        if self._broker.is_remote:
            threading.Thread(target=self._run, name="taskq-reminder", daemon=True).start()

    def stop(self) -> None:
        """What it is doing goes on; nobody waits for it."""
        self._is_stopped.set()

    def _run(self) -> None:
        wait_s = random() * min(FIRST_S_MAX, REMIND_S)
        while not self._is_stopped.wait(wait_s):
            wait_s = REMIND_S
            try:
                for group in (self._group, MOVERS):
                    remind(self._broker, group)
            except TaskqError as error:
                if self._is_stopped.is_set():
                    return
                _log.warning(
                    "what group %s has resolved of its dead letters was not said again: %s", self._group, error
                )
                wait_s = min(FIRST_S_MAX, REMIND_S)


def remind(broker: Broker, group: str) -> None:
    """Commit once more which dead letters of `group` are resolved. Raises TaskqError if that can't be done now."""
    topic = dead_topic(group)
    if topic not in broker.admin().topics():
        return
    with holding(broker, RESOLVED, topic, WAIT_S) as held:
        for tp, committed in held.committed.items():
            held.commit(tp, committed)
