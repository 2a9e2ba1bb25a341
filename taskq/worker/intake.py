"""From records to what is to be done with them: run, skipped, or given up at once.

Nearly all records are for one task that has no wishes, and carry no headers: those take the quick way through `sort`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from taskq.broker.port import Record
from taskq.context import Cancelled, is_cancelled
from taskq.errors import InvocationError
from taskq.message import Envelope, decode_envelope
from taskq.trip import EXPIRES, milliseconds, trip_of
from taskq.worker.gates import Gate, Ticket
from taskq.worker.retries import Failure, deadly, describe, shorten_name
from taskq.worker.work import Ended, Item, Job, Joint, Work

QUARANTINE_FROM = 3
"""From this delivery on an invocation that may have killed workers runs in a process of its own."""


class Sorted(NamedTuple):
    """What is to be done with some records."""

    items: list[Item]
    """To run."""
    failures: list[Ended]
    """To give up."""
    skipped: list[int]
    """Offsets of what another group runs."""
    may_wait: bool
    """Whether there may be tickets among `items`."""


class Intake:
    """Knows which of this worker's jobs a record is for.

    `jobs` is keyed by the name of a task or event; `is_known` says of other names whether they are another group's.
    An event that nobody here subscribed to is no mistake: it may be for programs that this app knows nothing of.
    `suspects` is the gate of what may have killed a worker, `is_in_danger` says whether all of that is to run in child
    processes, `free` is what a ticket's item calls when it has ended.
    """

    def __init__(
        self,
        jobs: Mapping[str, tuple[Job, ...]],
        is_known: Callable[[str], bool],
        suspects: Gate,
        is_in_danger: Callable[[], bool],
        free: Callable[[Ticket], None],
    ) -> None:
        self._jobs_of = jobs
        self._is_known = is_known
        self._suspects = suspects
        self._is_in_danger = is_in_danger
        self._free = free
        self.jobs: list[Job] = list({id(job): job for some in jobs.values() for job in some}.values())
        self._plain = {name: some[0] for name, some in jobs.items() if len(some) == 1 and not some[0].gates}
        self.cancelled: Cancelled = {}
        """If there are any, every record is looked for in them."""

    def sort(self, work: Work, records: Sequence[Record]) -> Sorted:
        items: list[Item] = []
        failures: list[Ended] = []
        skipped: list[int] = []
        may_wait = False
        is_usual, cancelled = bool(records) and records[0].offset >= work.suspects_end, self.cancelled
        add, plain_of = items.append, (self._plain if is_usual else _NONE).get
        for record in records:
            try:
                envelope = decode_envelope(record[3])
                job = plain_of(envelope.name)
                if job is not None and not record[4]:
                    ident = envelope.id
                    if not cancelled or (ident is not None and ident not in cancelled):
                        add((job, envelope, record, work))
                        continue
                found = self._look_closely(work, envelope, record)
            except InvocationError as error:
                found = Ended(work, record, "", describe(error, "unreadable"))
            if found is None:
                skipped.append(record.offset)
            elif isinstance(found, Ended):
                failures.append(found)
            else:
                items += found
                may_wait = True
        return Sorted(items, failures, skipped, may_wait)

    def _look_closely(self, work: Work, envelope: Envelope, record: Record) -> list[Item] | Ended | None:
        """The items of a record with headers, of a job with gates or an event, or after a death or a cancellation.

        None: it is another group's.
        """
        jobs = self._jobs_of.get(envelope.name)
        if jobs is None:
            if envelope.event or self._is_known(envelope.name):
                return None
            return _unknown(work, record, envelope.name)
        trip = trip_of(record)
        if trip.handler:
            jobs = tuple(job for job in jobs if job.task.name == trip.handler)
            if not jobs:
                return _unknown(work, record, trip.handler)
        name = jobs[0].task.name if len(jobs) == 1 else envelope.name
        if self.cancelled and is_cancelled(self.cancelled, envelope, record, work.tp):
            return Ended(work, record, name, Failure("cancelled", "", "it was cancelled", outcome="cancelled"))
        if milliseconds(record.headers, EXPIRES) is not None:  # looked at when it starts
            jobs = tuple(job.careful for job in jobs)
        delivery = work.marks.get(record.offset, 1) + 1 if record.offset < work.suspects_end else 1
        allowed = min(job.task.declared.max_deliveries for job in jobs)
        if delivery > allowed:
            return Ended(work, record, name, deadly(delivery - 1, trip))
        if delivery > 1 and (delivery >= min(QUARANTINE_FROM, allowed) or self._is_in_danger()):
            jobs = tuple(job.quarantined for job in jobs)
        gates = (self._suspects,) if delivery > 1 else ()
        inner = work if len(jobs) == 1 else Joint(work, len(jobs), delivery)
        return [self._make_item(job, envelope, record, work, inner, gates, delivery) for job in jobs]

    def _make_item(
        self,
        job: Job,
        envelope: Envelope,
        record: Record,
        work: Work,
        inner: Work | Joint,
        gates: tuple[Gate, ...],
        delivery: int,
    ) -> Item:
        if not job.gates and not gates:
            return job, envelope, record, inner
        ticket = Ticket(work, inner, (*job.gates, *gates), self._free, delivery)
        ticket.item = item = (job, envelope, record, ticket)
        return item


_NONE: Mapping[str, Job] = {}


def _unknown(work: Work, record: Record, name: str) -> Ended:
    name = shorten_name(name)
    why = f"no task {name!r} is registered in this worker's app; import the module that defines it (-A)"
    return Ended(work, record, name, Failure("unknown-task", "TaskNotFound", why))
