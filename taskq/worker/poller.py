"""The thread that owns a worker's consumer: fetches, hands out, takes up what is finished, commits.

Everything about partitions happens on this one thread, so none of it needs a lock. Runners only ever append: finished
offsets to their partition's list, failures and freed tickets to `Feed`.

The loop, and what ends it:

- it polls the consumer, which sleeps until there are records, a change in the group, or somebody calls `wakeup`; never
  longer than until the next commit is due while anything is unfinished or uncommitted, or until a gate opens
- broker errors that concern one partition (damage) stop that partition, loudly, and no other
- `StorageFull` or `BrokerUnavailable` while writing outcomes leaves their offsets unfinished and tries again at the
  next commit; while committing, it leaves progress uncommitted until then. Only for a worker that drains is it the end
  that the broker can't be reached
- any other error ends the loop, and with it the worker, with exit code 1: whoever supervises it starts another. What
  was committed stays committed; what was not runs again
- `stop` drains: nothing new is handed out, what runs may end (an event with a handler that has begun: all its
  handlers), progress is committed, the group is left

An offset is finished when its outcome is durable, in this order: the task returned, or its retry or dead letter was
appended; then it counts as finished; then it is committed with all others, every commit interval. Before anything is
handed out that lies beyond the limit that was committed, a higher one is (standing.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from taskq.broker.port import Broker, Committed, Consumer, Fetched, Polled, TopicPartition
from taskq.context import look_for_cancelled_in
from taskq.errors import BrokerUnavailable, StorageFull
from taskq.metrics import Metrics
from taskq.worker.cancels import Cancels
from taskq.worker.dispatch import Dispatch, bytes_of, discard, give_gates, is_among, priorities_of, take_parked
from taskq.worker.gates import BatchGate, Nowhere, Ticket
from taskq.worker.intake import Intake
from taskq.worker.progress import ENCODED_BYTES_MAX
from taskq.worker.retries import Failure
from taskq.worker.settle import Settler
from taskq.worker.share import Share
from taskq.worker.standing import MARKS_MAX, STANDING_BYTES_MAX
from taskq.worker.takeover import Takeover
from taskq.worker.throttle import Throttle
from taskq.worker.work import Crew, Ended, Feed, Job, Limits, Work

END_S = 60.0
"""How long to try to store what has ended before the worker ends, where the broker is another process."""

END_TURN_S = 0.1

HANDOVER_S = 1.0
"""How long a partition that another member should have waits for what runs in it, before it is kept for a while."""

_IDLE_S = 60.0
_STATE_BYTES_MAX = ENCODED_BYTES_MAX + STANDING_BYTES_MAX

_log = logging.getLogger("taskq.worker")


class Poller:
    """See the module docstring. `run` is the thread; `stop` and `stop_now` may be called from any other."""

    def __init__(
        self,
        broker: Broker,
        group: str,
        consumer: Consumer,
        topics: Sequence[str],
        jobs: Mapping[str, tuple[Job, ...]],
        is_known: Callable[[str], bool],
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self._group = group
        self._metrics = metrics
        self._commits = metrics.commits.labels(group)
        self._skipped = metrics.executions.labels(group, "", "skipped")
        self._commit_interval_s = limits.commit_interval_s
        self._producer = broker.producer()
        self._cancels = Cancels(broker)
        self._share = Share(broker, group, topics)
        self._consumer = consumer
        self._is_remote = broker.is_remote
        self.feed = Feed(max(1, limits.in_flight_max // 2), self._consumer.wakeup)
        all_jobs = {id(job): job for some in jobs.values() for job in some}.values()
        priorities = priorities_of(all_jobs)
        suspects = BatchGate(min(limits.concurrency, MARKS_MAX), self._mark, priorities)
        once = BatchGate(limits.concurrency, self._finish_early, priorities)
        gates = (*give_gates(all_jobs, once, self._part, priorities), suspects)
        self._intake = Intake(jobs, is_known, suspects, self._is_in_danger, self.feed.free)
        self._dispatch = Dispatch(self.feed, gates, priorities, limits.in_flight_max)
        self._settler = Settler(group, self._producer, metrics, self._dispatch.retry_in_place, self._dispatch.redeliver)
        self.works: dict[TopicPartition, Work] = {}
        """What is held. Others may look, but not touch."""
        self._lost: dict[TopicPartition, Work] = {}
        """As it was when it was lost: it may come back."""
        self._throttle = Throttle(group, consumer, self.feed, self._dispatch, self.works, limits)
        self.polled_at = 0.0
        """When the loop last came round (monotonic)."""
        self.on_tick: list[Callable[[float], object]] = []
        """Called at each commit interval while there is anything to do, with the time (monotonic)."""
        self._reader = broker.reader()
        self._next_commit = 0.0
        self._clock_skew_s = 0.0
        self._stop_by: float | None = None
        self._stop_now = threading.Event()

    def start(self, crews: Sequence[Crew], aside: Crew | None = None) -> None:
        """Say who runs things; `aside`, only what may have killed workers. Before `run`."""
        self._dispatch.start(crews, aside)
        look_for_cancelled_in(self._cancels.ids)

    @property
    def is_held_up(self) -> bool:
        """Whether one crew has nothing to do while as much as may be in flight waits for another."""
        return self._throttle.is_full and not all(self.feed.queues)

    # -- the loop

    def run(self) -> None:
        """Poll until stopped. Raises what ends it otherwise."""
        try:
            while not self._is_done():
                if self._cancels.are_known():
                    self._turn()
            self._end()
        finally:
            self._cancels.close()
            self._consumer.close()
            self._producer.close()

    def _end(self) -> None:
        """Store what has ended. Where others come or go meanwhile, that may have to wait for what we give up."""
        is_drained = not self._stop_now.is_set() and not any(work.handed_out for work in self.works.values())
        until = time.monotonic() + (END_S if is_drained and self._is_remote else 0.0)
        while True:
            is_over = self._stop_now.is_set() or time.monotonic() >= until
            try:
                self._fold_and_commit(is_last=True)
                if is_over or not any(map(_is_to_be_stored, self.works.values())):
                    break
                _log.info("what group %s has finished is not all stored yet", self._group)
            except BrokerUnavailable as error:
                if is_over:
                    raise
                _log.warning("can't commit the progress of group %s yet: %s", self._group, error)
            self._take_changes(self._consumer.poll(END_TURN_S), time.monotonic())
            self._finish_handovers(time.monotonic())

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
        works = list(self.works.values())
        handed_back = self._dispatch.take_unbegun(works) + take_parked(works)
        if handed_back:
            _log.info("%d invocations that had not begun are left to others", len(handed_back))
        discard(handed_back)
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
        if self._cancels.refresh() or (self._cancels.ids and not self._intake.cancelled):
            self._cancel()
        if polled.fetched and self._stop_by is None:
            if self._is_idle():  # the commit interval counts from here: runners must not wait for an empty commit
                self._next_commit = now + self._commit_interval_s
            self._hand_out(polled.fetched)
        if self.feed.failures:
            self._settler.settle(self.feed.failures)
        self._dispatch.turn(now)
        if now >= self._next_commit:
            self._fold_and_commit()
            self._next_commit = now + self._commit_interval_s
            for tick in self.on_tick:
                tick(now)
        self._finish_handovers(now)
        self._throttle.balance(self._take_up_ended)
        self.polled_at = now

    def _timeout(self) -> float:
        """How long to poll at most: until a commit is due, if anything is or may be to commit, or a gate opens."""
        if self._is_idle():
            return _IDLE_S
        return max(0.0, min(self._next_commit, self._dispatch.next_at()) - time.monotonic())

    def _is_idle(self) -> bool:
        return all(work.is_at_rest for work in self.works.values())

    # -- partitions come and go

    def _take_changes(self, polled: Polled, now: float) -> None:
        if polled.assigned or polled.revoking or polled.lost:
            self._metrics.rebalances.labels(self._group).inc()
        takeover = Takeover(self._group, self._reader)
        for tp, committed in polled.assigned.items():
            lost = self._lost.pop(tp, None)
            is_ours = lost is not None and lost.has_stored(committed)  # nobody has had it since, and nobody has died
            self.works[tp] = lost.anew() if lost is not None and is_ours else takeover.take_up(tp, committed)
        if polled.assigned:
            self._share.recount()
            for tp in polled.assigned:
                self.works[tp].set_limit()
            self._commit([self.works[tp] for tp in polled.assigned])
        for tp in polled.lost:
            self._lost[tp] = work = self.works.pop(tp)
            self._throttle.forget(tp)
            discard(self._dispatch.take_back([work]) + take_parked([work]))
        for tp in polled.revoking:
            self.works[tp].handover_at = now + HANDOVER_S
            self.works[tp].parked += self._dispatch.take_unbegun([self.works[tp]])  # it may be asked for again
        for tp, error in polled.errors.items():
            self.works[tp].error = error
            _log.error("group %s stops reading %s: %s", self._group, tp, error)
        if polled.assigned or polled.lost:
            held = ", ".join(map(str, sorted(self.works))) or "no partitions"
            _log.info("group %s holds %s", self._group, held)

    def _count_skipped(self, skipped: Mapping[TopicPartition, int]) -> None:
        for tp, count in skipped.items():
            self._metrics.skipped_offsets.labels(self._group, tp.topic, str(tp.partition)).inc(count)
            _log.warning(
                "%s: %d offsets that group %s had not finished are gone: older, or more, than the topic keeps",
                *(tp, count, self._group),
            )

    def _finish_handovers(self, now: float) -> None:
        asked = [work for work in self.works.values() if work.handover_at is not None]
        for work in asked:
            work.fold()
        ended = [work for work in asked if not work.runs]
        for topic in {work.tp.topic for work in ended}:  # a commit for one may have to wait for another's release
            self._give_up([work for work in ended if work.tp.topic == topic])
        for work in asked:
            is_late = work.handover_at is not None and now >= work.handover_at
            if is_late and self._stop_by is None and work.tp in self.works:
                work.handover_at = None
                _log.info("%s is kept for now: %d invocations of it are unfinished", work.tp, work.handed_out)
                self._consumer.keep([work.tp])
                self._dispatch.add(take_parked([work]))

    def _give_up(self, works: Sequence[Work]) -> None:
        """Those whose progress can be stored."""
        states = {work: work.state(is_open=False) for work in works}
        self._store(states)
        given_up = [work.tp for work, state in states.items() if work.committed == state]
        for tp in given_up:
            del self.works[tp]
            self._throttle.forget(tp)
        if given_up:
            self._consumer.release(given_up)
            _log.info("group %s gave up %s", self._group, ", ".join(map(str, given_up)))

    # -- records in

    def _hand_out(self, fetched: Iterable[Fetched]) -> None:
        self._clock_skew_s = time.time() - time.perf_counter()
        self._raise_limits(fetched)
        for tp, fetched_records in fetched:
            work = self.works[tp]
            end = fetched_records[-1].offset + 1
            if end - work.end != len(fetched_records):
                work.progress.finish_gaps(work.end, (record.offset for record in fetched_records))
            work.end = end
            records = fetched_records
            if records[0].offset < work.progress.high:  # after a restart: some of these had been finished
                records = [record for record in records if not work.progress.is_finished(record.offset)]
            work.handed_out += len(records)
            work.handed_out_bytes += bytes_of(records)
            items, failures, skipped, may_wait = self._intake.sort(work, records)
            self._dispatch.add(items, may_wait=may_wait)
            self.feed.failures.extend(failures)
            if skipped:
                self._skipped.inc(len(skipped))
                work.skip(skipped)

    def _raise_limits(self, fetched: Iterable[Fetched]) -> None:
        """Nothing may be started beyond the limit that is stored: it is the last thing that a worker that dies says."""
        beyond = [work for tp, records in fetched if (work := self.works[tp]).limit <= records[-1].offset]
        if beyond:
            for tp, records in fetched:
                self.works[tp].set_limit(records[-1].offset + 1)
            self._commit(beyond)  # if there is no space, work goes on: deliveries are counted less well then

    def _cancel(self) -> None:
        """Take out what was cancelled while it waited, and stop what runs of it."""
        self._intake.cancelled = self._cancels.ids
        taken = self._dispatch.take_cancelled(self._cancels.ids)
        for work in self.works.values():
            taken += [item for item in work.parked if is_among(item, self._cancels.ids)]
            work.parked = [item for item in work.parked if not is_among(item, self._cancels.ids)]
        for item in taken:
            failure = Failure("cancelled", "", "it was cancelled", outcome="cancelled")
            self.feed.failures.append(Ended(item[3], item[2], item[0].task.name, failure, item))

    def _part(self) -> float:
        return self._share.of(len(self.works))

    # -- before something starts

    def _is_in_danger(self) -> bool:
        """Whether suspects are held of which some were running when a worker died that knew that they were."""
        return any(work.is_dangerous for work in self.works.values())

    def _mark(self, tickets: list[Ticket]) -> bool:
        """Store how often these have been delivered, this time included, before they are."""
        self._fold()  # so that the same commit tells what has ended by now: it is not to be counted again
        for ticket in tickets:
            ticket.work.marks[ticket.item[2].offset] = ticket.delivery
        self._commit({ticket.work for ticket in tickets})  # if there is no space, work goes on
        return True

    def _finish_early(self, tickets: list[Ticket]) -> bool:
        """Store that these are finished, before they run. Only then are they."""
        offsets: dict[Work, list[int]] = {}
        for ticket in tickets:
            offsets.setdefault(ticket.work, []).append(ticket.item[2].offset)
        if not self._store({work: work.state_after(early) for work, early in offsets.items()}):
            return False
        for ticket in tickets:
            ticket.work.finish_early(ticket.item[2].offset)
            ticket.inner = Nowhere(ticket.work)  # from here on it must run here, or it never will
        return True

    # -- outcomes out

    def _fold_and_commit(self, *, is_last: bool = False) -> None:
        self._take_up_ended()
        for work in self.works.values():
            work.set_limit()
        self._commit(self.works.values(), is_open=not is_last, raises=is_last)

    def _take_up_ended(self) -> None:
        self._settler.settle(self.feed.failures)
        self._fold()

    def _fold(self) -> None:
        for work in self.works.values():
            work.fold()
        for job in self._intake.jobs:  # last: a run is told before its offset, so what was folded is counted
            job.count(self._clock_skew_s)

    def _commit(self, works: Iterable[Work], *, is_open: bool = True, raises: bool = False) -> None:
        """Store the progress of `works`. What can't be is not `committed` then."""
        self._store({work: work.state(is_open=is_open) for work in works}, raises=raises)

    def _store(self, wanted: Mapping[Work, tuple[int, bytes]], *, raises: bool = False) -> bool:
        """False: some of it could not be stored now."""
        # Too long to be stored only where two crews are far apart; the partition is stalled then.
        fitting = {work: state for work, state in wanted.items() if len(state[1]) <= _STATE_BYTES_MAX}
        is_whole = len(fitting) == len(wanted)
        states = {work: state for work, state in fitting.items() if state != work.committed}
        if not states:
            return is_whole
        try:
            missed = self._consumer.commit({work.tp: Committed(*state) for work, state in states.items()})
        except (StorageFull, BrokerUnavailable) as error:
            if raises and isinstance(error, BrokerUnavailable):
                raise
            level = logging.ERROR if isinstance(error, StorageFull) else logging.WARNING
            _log.log(level, "can't commit the progress of group %s yet: %s", self._group, error)
            return False
        for work, state in states.items():
            if work.tp not in missed:
                work.committed = state
        self._commits.inc()
        return is_whole and not missed


def _is_to_be_stored(work: Work) -> bool:
    """Whether something of it is not stored that can be."""
    state = work.state(is_open=False)
    return state != work.committed and len(state[1]) <= _STATE_BYTES_MAX
