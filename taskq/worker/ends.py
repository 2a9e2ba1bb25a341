"""Where partitions end that were just taken over: what was not there yet can't have been started."""

from __future__ import annotations

import logging

from attrs import evolve

from taskq.broker.port import Reader, TopicPartition
from taskq.errors import BrokerUnavailable, TopicNotFound
from taskq.worker.standing import Standing

_log = logging.getLogger("taskq.worker")


class Ends:
    """Of partitions that were taken over together. A broker that can't say it of one is not asked for the others: each
    answer may take long, and more than need be is taken up with care without it."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._can_ask = True

    def clipped(self, standing: Standing, tp: TopicPartition) -> Standing:
        """Nothing is suspected that is past the end."""
        if not standing.limit or not self._can_ask:
            return standing
        try:
            return evolve(standing, limit=min(standing.limit, self._reader.bounds(tp).end))
        except BrokerUnavailable as error:
            self._can_ask = False
            _log.warning("the end of %s is not known: %s", tp, error)
        except TopicNotFound:  # deleted just now, which the consumer will tell
            pass
        return standing
