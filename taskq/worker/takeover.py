"""Taking up partitions where their last owner stopped. What was not there yet can't have been started."""

from __future__ import annotations

import logging

from attrs import evolve

from taskq.broker.port import Committed, Reader, TopicPartition
from taskq.errors import BrokerUnavailable, TopicNotFound
from taskq.worker.progress import Progress
from taskq.worker.standing import Standing
from taskq.worker.work import Work

_log = logging.getLogger("taskq.worker")


class Takeover:
    """Of several partitions at once. A broker that can't say where one ends is not asked about the others: each answer
    may take long, and without it no more goes wrong than that more than need be is taken up with care."""

    def __init__(self, group: str, reader: Reader) -> None:
        self._group = group
        self._reader = reader
        self._can_ask = True

    def take_up(self, tp: TopicPartition, committed: Committed) -> Work:
        """The partition, as it was committed. If what that says can't be read, all from its offset on runs again."""
        try:
            standing, encoded = Standing.decode(committed.offset, committed.metadata)
            work = Work(tp, Progress.decode(committed.offset, encoded), self._clipped(standing, tp))
        except ValueError as error:
            _log.error(
                "%s: what group %s committed beside offset %d can't be read (%s); what is finished above it runs again",
                *(tp, self._group, committed.offset, error),
            )
            return Work(tp, Progress(committed.offset))
        if work.suspects_end:
            _log.warning(
                "%s: a worker of group %s died holding it; what it may have been running is taken up with care",
                *(tp, self._group),
            )
        return work

    def _clipped(self, standing: Standing, tp: TopicPartition) -> Standing:
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
