"""From records to what is to be done with them: run, skipped, or a dead letter at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from taskq.broker.port import Record
from taskq.errors import InvocationError
from taskq.message import decode_envelope
from taskq.worker.work import Failed, Failure, Item, Job, Joint, Work, describe


class Intake:
    """Knows which of this worker's jobs a record is for.

    `jobs` is keyed by the name of a task or event; `is_known` says of other names whether they are another group's.
    An event that nobody here subscribed to is no mistake: it may be for programs that this app knows nothing of.
    """

    def __init__(self, jobs: Mapping[str, tuple[Job, ...]], is_known: Callable[[str], bool]) -> None:
        self._jobs_of = jobs
        self._is_known = is_known
        self.jobs: list[Job] = list({id(job): job for some in jobs.values() for job in some}.values())

    def sort(self, work: Work, records: Sequence[Record]) -> tuple[list[Item], list[Failed], list[int]]:
        """What to run, what to give up, and the offsets of what another group runs."""
        items: list[Item] = []
        failures: list[Failed] = []
        skipped: list[int] = []
        add, jobs_of = items.append, self._jobs_of.get
        for record in records:
            try:
                envelope = decode_envelope(record[3])
            except InvocationError as error:
                failures.append((work, record, "", describe(error, "unreadable")))
                continue
            jobs = jobs_of(envelope.name)
            if jobs is None:
                if envelope.event or self._is_known(envelope.name):
                    skipped.append(record.offset)
                else:
                    failures.append((work, record, envelope.name, _unknown(envelope.name)))
            elif len(jobs) == 1:
                add((jobs[0], envelope, record, work))
            else:
                joint = Joint(work, len(jobs))
                items += [(job, envelope, record, joint) for job in jobs]
        return items, failures, skipped


def _unknown(name: str) -> Failure:
    return Failure(
        "unknown-task",
        "TaskNotFound",
        f"no task {name!r} is registered in this worker's app; import the module that defines it (-A)",
    )
