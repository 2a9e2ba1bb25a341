"""The thread that owns a worker's consumer: fetches, hands out, takes up what is finished, commits.

Everything about partitions happens on this one thread, so none of it needs a lock. Runners only ever append: finished
offsets to their partition's list, failures to `Feed.failures`.

The loop, and what ends it:

- it polls the consumer, which sleeps until there are records, a change in the group, or somebody calls `wakeup`; never
  longer than until the next commit is due while anything is unfinished or uncommitted
- broker errors that concern one partition (damage) stop that partition, loudly, and no other
- `StorageFull` while writing dead letters leaves their offsets unfinished and tries again at the next commit; while
  committing, it leaves progress uncommitted until then
- any other error ends the loop, and with it the worker, with exit code 1: whoever supervises it starts another. What
  was committed stays committed; what was not runs again
- `stop` drains: nothing new is handed out, what runs may end (an event with a handler that has begun: all its
  handlers), progress is committed, the group is left

An offset is finished when its outcome is durable, in this order: the task returned, or its dead letter was appended;
then it counts as finished; then it is committed with all others, every commit interval.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from taskq.broker.port import Broker, Committed, Consumer, Fetched, Polled, Record, TopicPartition
from taskq.errors import StorageFull
from taskq.metrics import Metrics
from taskq.worker.deadletters import dead_letter, topic_of
from taskq.worker.intake import Intake
from taskq.worker.progress import ENCODED_BYTES_MAX, Progress
from taskq.worker.work import Crew, Feed, Item, Job, Joint, Work

HANDOVER_S = 1.0
"""How long a partition that another member should have waits for what runs in it, before it is kept for a while."""

BYTES_MAX = 64 * 1024 * 1024
"""Fetching stops when the records in flight are larger than this, however few they are."""

_IDLE_S = 60.0
_DEAD_LETTERS_MAX = 1000
"""How many are written at once, to bound the memory they take with their tracebacks."""

_log = logging.getLogger("taskq.worker")


class Poller:
    """See the module docstring. `run` is the thread; `stop` and `stop_now` may be called from any other."""

    def __init__(
        self,
        broker: Broker,
        group: str,
        consumer: Consumer,
        intake: Intake,
        metrics: Metrics,
        *,
        concurrency: int,
        in_flight_max: int,
        commit_interval_s: float,
    ) -> None:
        self._group = group
        self._intake = intake
        self._metrics = metrics
        self._commits = metrics.commits.labels(group)
        self._skipped = metrics.executions.labels(group, "", "skipped")
        self._concurrency = concurrency
        self._in_flight_max = in_flight_max
        self._commit_interval_s = commit_interval_s
        self._producer = broker.producer()
        self._consumer = consumer
        self.feed = Feed(max(1, in_flight_max // 2), self._consumer.wakeup)
        self._crews: Sequence[Crew] = ()
        self._crew_of: dict[int, Crew] = {}
        self.works: dict[TopicPartition, Work] = {}
        """What is held. Others may look, but not touch."""
        self.polled_at = 0.0
        """When the loop last came round (monotonic)."""
        self._next_commit = 0.0
        self._clock_skew_s = 0.0
        self._is_full = False
        self._stop_by: float | None = None
        self._stop_now = threading.Event()

    def start(self, crew_for: Callable[[Job], Crew]) -> None:
        """Say which crew runs what. Before `run`."""
        self._crew_of = {id(job): crew_for(job) for job in self._intake.jobs}
        self._crews = list({id(crew): crew for crew in self._crew_of.values()}.values())
        self.feed.queues = [crew.queue for crew in self._crews]

    @property
    def is_held_up(self) -> bool:
        """Whether one crew has nothing to do while as much as may be in flight waits for another."""
        return self._is_full and not all(self.feed.queues)

    # -- the loop

    def run(self) -> None:
        """Poll until stopped. Raises what ends it otherwise."""
        try:
            while not self._is_done():
                self._turn()
            self._fold_and_commit()
        finally:
            self._consumer.close()
            self._producer.close()

    def stop(self, within_s: float) -> None:
        """Drain: hand out nothing more and end when what runs has ended, in `within_s` seconds at most."""
        self._stop_by = time.monotonic() + within_s
        self._consumer.wakeup()

    def stop_now(self) -> None:
        """End without waiting for what runs. What is finished is committed."""
        self._stop_now.set()
        self._consumer.wakeup()

    def _is_done(self) -> bool:
        if self._stop_now.is_set():
            return True
        if self._stop_by is None:
            return False
        self._consumer.leave()
        _discard(self._take_unbegun(self.works.values()) + _take_parked(self.works.values()))
        self._fold()
        unfinished = sum(work.handed_out for work in self.works.values())
        if unfinished and time.monotonic() >= self._stop_by:
            _log.warning("%d invocations still ran when the time to drain was over; they will run again", unfinished)
            return True
        return not unfinished

    def _turn(self) -> None:
        polled = self._consumer.poll(self._timeout())
        now = time.monotonic()
        if polled.assigned or polled.revoking or polled.lost or polled.errors:
            self._take_changes(polled, now)
        if polled.skipped:
            self._count_skipped(polled.skipped)
        if polled.fetched and self._stop_by is None:
            if self._is_idle():  # the commit interval counts from here: runners must not wait for an empty commit
                self._next_commit = now + self._commit_interval_s
            self._hand_out(polled.fetched)
        if now >= self._next_commit:
            self._fold_and_commit()
            self._next_commit = now + self._commit_interval_s
        self._finish_handovers(now)
        self._balance_intake()
        self.polled_at = now

    def _timeout(self) -> float:
        """How long to poll at most: until the next commit, if there is or may be anything to commit."""
        return _IDLE_S if self._is_idle() else max(0.0, self._next_commit - time.monotonic())

    def _is_idle(self) -> bool:
        """Whether nothing is unfinished and everything is committed."""
        works = self.works.values()
        return not any(work.handed_out or work.is_stalled or not work.is_committed for work in works)

    # -- partitions come and go

    def _take_changes(self, polled: Polled, now: float) -> None:
        if polled.assigned or polled.revoking or polled.lost:
            self._metrics.rebalances.labels(self._group).inc()
        for tp, committed in polled.assigned.items():
            self.works[tp] = Work(tp, self._read_progress(tp, committed))
        for tp in polled.lost:
            lost = [self.works.pop(tp)]
            _discard(self._take_queued(lost) + _take_parked(lost))
        for tp in polled.revoking:
            self.works[tp].handover_at = now + HANDOVER_S
            self.works[tp].parked = self._take_unbegun([self.works[tp]])
        for tp, error in polled.errors.items():
            self.works[tp].error = error
            _log.error("group %s stops reading %s: %s", self._group, tp, error)
        if polled.assigned or polled.lost:
            held = ", ".join(map(str, sorted(self.works))) or "no partitions"
            _log.info("group %s holds %s", self._group, held)
        if self._is_full and polled.assigned:
            self._consumer.pause(list(polled.assigned))

    def _count_skipped(self, skipped: Mapping[TopicPartition, int]) -> None:
        for tp, count in skipped.items():
            self._metrics.skipped_offsets.labels(self._group, tp.topic, str(tp.partition)).inc(count)
            _log.warning(
                "%s: %d offsets that group %s had not finished are gone: older, or more, than the topic keeps",
                *(tp, count, self._group),
            )

    def _read_progress(self, tp: TopicPartition, committed: Committed) -> Progress:
        try:
            return Progress.decode(committed.offset, committed.metadata)
        except ValueError as error:
            _log.error(
                "%s: what group %s committed beside offset %d can't be read (%s); what is finished above it runs again",
                *(tp, self._group, committed.offset, error),
            )
            return Progress(committed.offset)

    def _finish_handovers(self, now: float) -> None:
        given_up = []
        for work in list(self.works.values()):
            if work.handover_at is None:
                continue
            work.fold()
            if not work.runs and self._commit([work]):
                del self.works[work.tp]
                self._consumer.release([work.tp])
                given_up.append(work.tp)
            elif now >= work.handover_at and self._stop_by is None:
                work.handover_at = None
                _log.info("%s is kept for now: %d invocations of it are unfinished", work.tp, work.handed_out)
                self._consumer.keep([work.tp])
                self._queue(_take_parked([work]))
        if given_up:
            _log.info("group %s gave up %s", self._group, ", ".join(map(str, given_up)))

    def _take_queued(self, works: Iterable[Work]) -> list[Item]:
        """Take the items of `works` out of the queues, whose other items keep their order."""
        taken: list[Item] = []
        tps = {work.tp for work in works}
        for crew in self._crews:
            kept: list[Item] = []
            while True:
                try:
                    item = crew.queue.popleft()  # runners take from it at the same time: one of us gets each
                except IndexError:
                    break
                (taken if item[3].tp in tps else kept).append(item)
            if kept:
                crew.submit(kept)
        return taken

    def _take_unbegun(self, works: Iterable[Work]) -> list[Item]:
        """Take what is queued of `works`, but not the records of which another handler runs or ran: those end here."""
        items = self._take_queued(works)
        taken = Counter(id(item[3]) for item in items if isinstance(item[3], Joint))
        unbegun: list[Item] = []
        begun: list[Item] = []
        for item in items:
            is_begun = isinstance(item[3], Joint) and taken[id(item[3])] < item[3].handlers
            (begun if is_begun else unbegun).append(item)
        self._queue(begun)
        return unbegun

    # -- records in

    def _hand_out(self, fetched: Iterable[Fetched]) -> None:
        self._clock_skew_s = time.time() - time.perf_counter()
        for tp, fetched_records in fetched:
            work = self.works[tp]
            end = fetched_records[-1].offset + 1
            if end - work.end != len(fetched_records):
                work.pass_gaps(fetched_records)
            work.end = end
            records = fetched_records
            if records[0].offset < work.progress.high:  # after a restart: some of these had been finished
                records = [record for record in records if not work.progress.is_finished(record.offset)]
            work.handed_out += len(records)
            work.handed_out_bytes += _bytes_of(records)
            items, failures, skipped = self._intake.sort(work, records)
            self._queue(items)
            self.feed.failures.extend(failures)
            if skipped:
                self._skipped.inc(len(skipped))
                work.skip(skipped)
            if not work.is_stalled and not work.fits(self._concurrency):
                self._stall(work)

    def _stall(self, work: Work) -> None:
        work.is_stalled = True
        self._consumer.pause([work.tp])
        _log.warning(
            "%s: group %s is too far ahead of its slowest invocation, at offset %d; waiting for it",
            *(work.tp, self._group, work.progress.low),
        )

    def _queue(self, items: list[Item]) -> None:
        if len(self._crews) == 1:
            if items:
                self._crews[0].submit(items)
            return
        for crew in self._crews:
            own = [item for item in items if self._crew_of[id(item[0])] is crew]
            if own:
                crew.submit(own)

    def _balance_intake(self) -> None:
        """Stop fetching when enough is in flight; go on when runners ask. The backlog waits in the log."""
        if not self._is_full and self._has_enough():
            self._bury_failures()  # what has ended meanwhile counts no more
            self._fold()
            if self._has_enough():
                self._consumer.pause([tp for tp, work in self.works.items() if not work.is_stalled])
                self.feed.low = max(1, min(self._in_flight_max, self.feed.queued()) // 2)
                self._is_full = self.feed.is_full = True
        if self._is_full and self.feed.queued() < self.feed.low:
            self._consumer.resume([tp for tp, work in self.works.items() if not work.is_stalled and not work.error])
            self._is_full = self.feed.is_full = False

    def _has_enough(self) -> bool:
        queued = self.feed.queued()
        if queued >= self._in_flight_max:
            return True
        # Where nothing waits, what runs may be as large as it likes: idle runners must get their work.
        return queued > 0 and sum(work.handed_out_bytes for work in self.works.values()) > BYTES_MAX

    # -- outcomes out

    def _fold_and_commit(self) -> None:
        self._bury_failures()
        self._fold()
        self._commit(self.works.values())

    def _fold(self) -> None:
        for work in self.works.values():
            work.fold()
            if work.is_stalled and work.fits(self._concurrency):
                work.is_stalled = False
                if not self._is_full:
                    self._consumer.resume([work.tp])
        for job in self._intake.jobs:  # last: a run is told before its offset, so what was folded is counted
            job.count(self._clock_skew_s)

    def _commit(self, works: Iterable[Work]) -> bool:
        """Store the progress of `works`. False: there is no space for it, so it is to be tried again."""
        states = {}
        for work in works:
            state = (work.progress.low, work.progress.encode())
            # Too long to be stored only where two crews are far apart; the partition is stalled then.
            if state != work.committed and len(state[1]) <= ENCODED_BYTES_MAX:
                states[work] = state
        if not states:
            return True
        try:
            self._consumer.commit({work.tp: Committed(*state) for work, state in states.items()})
        except StorageFull as error:
            _log.error("can't commit the progress of group %s yet: %s", self._group, error)
            return False
        for work, state in states.items():
            work.committed = state
        self._commits.inc()
        return True

    def _bury_failures(self) -> None:
        """Append what failed to the group's dead letters; only then is it finished."""
        failures = self.feed.failures
        while failures:
            batch = [failures[index] for index in range(min(len(failures), _DEAD_LETTERS_MAX))]
            now_ms = int(time.time() * 1000)
            letters = [
                dead_letter(self._group, name, work.tp, record, why, now_ms) for work, record, name, why in batch
            ]
            try:
                self._producer.send_many(topic_of(self._group), letters)
            except StorageFull as error:
                _log.error("can't write %d dead letters of group %s yet: %s", len(failures), self._group, error)
                return
            for work, record, name, why in batch:
                failures.popleft()
                work.finish(record.offset)
                self._metrics.executions.labels(self._group, name, "dead").inc()
                _log.error(
                    "%s at %s offset %d is a dead letter: %s: %s: %s",
                    *(name or "a record", work.tp, record.offset, why.reason, why.type, why.message.partition("\n")[0]),
                )


def _bytes_of(records: Sequence[Record]) -> int:
    """About how large they are: of many, which are small since a fetch is bounded, a few dozen are looked at."""
    some = records[:: 1 + len(records) // 32]
    return sum([len(record[3] or b"") for record in some]) * len(records) // max(1, len(some))


def _take_parked(works: Iterable[Work]) -> list[Item]:
    taken: list[Item] = []
    for work in works:
        taken += work.parked
        work.parked = []
    return taken


def _discard(items: Iterable[Item]) -> None:
    """Forget these. They stay unfinished, so they are delivered again."""
    for item in items:
        item[3].discard(item[2].offset)
