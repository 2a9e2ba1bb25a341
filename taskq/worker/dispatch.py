"""From what was read to what runs: items through their gates and into the queues of crews, and back out again.

Belongs to the poller's thread. Crews take from their queues by themselves; all else happens when the poller comes
round (`turn`), or when it says so.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from taskq.broker.port import Record
from taskq.context import Cancelled, is_cancelled
from taskq.options import PRIORITIES, parse_rate
from taskq.worker.gates import Gate, Nowhere, OrderGate, Pause, RateGate, Ticket, WidthGate
from taskq.worker.rounds import WEIGHTS
from taskq.worker.work import Crew, Ended, Feed, Item, Job, Joint, Work, published_on

AHEAD_OF_RUNNERS = 64
"""How many wait in a crew's queue where there are priorities: whatever comes later waits behind them."""


def give_gates(
    jobs: Iterable[Job], once: Gate, share: Callable[[], float], priority_of: Mapping[str, str]
) -> list[Gate]:
    """Give each job the gates its task asks for; return all of them.

    `once` is that of tasks that are finished before they run, `share` says which part of a limit for the whole group is
    this worker's. A rate comes after the other limits, since it is of starts: who has passed it should start at once.
    """
    order, gates = OrderGate(), []
    for job in jobs:
        declared = job.task.declared
        own: list[Gate] = [order] if job.is_ordered else []
        if declared.concurrency is not None:
            own.append(WidthGate(declared.concurrency, priority_of))
        if declared.rate_limit is not None:
            own.append(RateGate(_rate(parse_rate(declared.rate_limit), share), time.monotonic(), priority_of))
        if declared.at_most_once:
            own.append(once)
        job.gates = tuple(own)
        gates += own
    return list(dict.fromkeys(gates))


def _rate(rate: float, share: Callable[[], float]) -> Callable[[], float]:
    return lambda: rate * share()


def priorities_of(jobs: Iterable[Job]) -> dict[str, str]:
    """The priority of each topic that has one: those of tasks that declare any."""
    tasks = [job.task for job in jobs if job.task.declared.priority is not None]
    return {topic: priority for task in tasks for topic, priority in zip(task.topics, PRIORITIES, strict=True)}


class Dispatch:
    """`priority_of` says of a topic which priority it has, if the group has any."""

    def __init__(self, feed: Feed, gates: Iterable[Gate], priority_of: Mapping[str, str], in_flight_max: int) -> None:
        self._feed = feed
        self._gates = list(gates)
        self._paces = [gate for gate in self._gates if isinstance(gate, RateGate)]
        self._crews: Sequence[Crew] = ()
        self._usual: Sequence[Crew] = ()
        self._retries = Pause()
        self._priority_of = priority_of
        self._in_flight_max = in_flight_max
        self._classes: list[_Classes] = []
        """One for each crew, if there are priorities."""

    def start(self, crews: Sequence[Crew], aside: Crew | None = None) -> None:
        """Say who runs things; `aside`, only what may have killed workers. Before anything is added."""
        self._crews = crews if aside is None or aside in crews else (*crews, aside)
        self._usual = crews
        if self._priority_of:
            self._classes = [_Classes(self._priority_of, self._in_flight_max) for _ in self._crews]
            self._feed.is_each = True
        self._feed.queues = [crew.queue for crew in crews]  # who is there for suspects only is not short of work

    @property
    def full_topics(self) -> Collection[str]:
        """Those of which enough waits: no more is to be fetched of them."""
        return {topic for classes in self._classes for topic in classes.full_topics}

    # -- in

    def add(self, items: list[Item], *, may_wait: bool = True) -> None:
        """Let these run, or wait at their gates until they may. Not `may_wait`: none of them has any."""
        ready = items
        if may_wait:
            ready = [item for item in items if not isinstance(item[3], Ticket) or self._advance(item[3])]
        if ready and not self._classes and len(self._usual) == 1:
            self._usual[0].submit(ready)  # no suspects are among these: their gate lets nobody through at once
        elif ready:
            self._submit(ready)

    def retry_in_place(self, ended: Ended, item: Item, at: float) -> None:
        """Run `item`, which takes the place of one that failed, at a time (monotonic). Nobody overtakes it."""
        ticket = item[3]
        assert isinstance(ticket, Ticket)
        kept = ticket.gates[:1]  # its lane
        for gate in ticket.gates[1 : ticket.passed]:
            gate.leave(ticket)
        ticket.passed = len(kept)
        ticket.item = item
        ticket.not_before = at
        ticket.work.waiting += 1
        self._retries.add(ticket, at)

    def redeliver(self, item: Item) -> None:
        """Run a suspect once more, as its next delivery: from the gate on that marks it, which is its last."""
        ticket = item[3]
        assert isinstance(ticket, Ticket)
        ticket.delivery += 1
        ticket.passed = len(ticket.gates) - 1
        ticket.gates[-1].leave(ticket)
        if self._advance(ticket):
            self._submit([ticket.item])

    def turn(self, now: float) -> None:
        """Leave gates for what has ended, and let in whoever may pass by now."""
        freed = self._feed.freed
        while freed:
            ticket = freed.popleft()
            self._leave(ticket)
            ticket.forget()
        ready: list[Item] = []
        for ticket in self._retries.release(now):
            ticket.work.waiting -= 1
            if self._advance(ticket):
                ready.append(ticket.item)
        is_changing = True
        while is_changing:  # who passes one gate may open another, and those are few
            is_changing = False
            for gate in self._gates:
                for ticket in gate.release(now):
                    is_changing = True
                    ticket.work.waiting -= 1
                    ticket.passed += 1
                    if self._advance(ticket):
                        ready.append(ticket.item)
        if ready:
            paced = [item for item in ready if _is_paced(item)] if self._paces else []
            self._submit_paced(paced)
            self._submit([item for item in ready if not _is_paced(item)] if paced else ready)
        for crew, classes in zip(self._crews, self._classes, strict=False):
            self._fill(crew, classes)

    def next_at(self) -> float:
        """When (monotonic) to come round again if nothing happens before."""
        return min([self._retries.next_at(), *[gate.next_at() for gate in self._gates]])

    def _advance(self, ticket: Ticket) -> bool:
        """Through its gates as far as they let it. Whether it has passed all."""
        while True:
            if ticket.passed == 1 and ticket.not_before > time.monotonic():  # taken back while it waited in its lane
                ticket.work.waiting += 1
                self._retries.add(ticket, ticket.not_before)
                return False
            if ticket.passed == len(ticket.gates):
                return True
            if not ticket.gates[ticket.passed].enter(ticket):
                ticket.work.waiting += 1
                return False
            ticket.passed += 1

    @staticmethod
    def _leave(ticket: Ticket) -> None:
        for gate in ticket.gates[: ticket.passed]:
            gate.leave(ticket)
        ticket.passed = 0

    def _submit(self, items: list[Item]) -> None:
        for index, crew in enumerate(self._crews):
            own = [item for item in items if item[0].crew is crew]
            if own and self._classes:
                self._classes[index].add(own)
            elif own:
                crew.submit(own)

    def _submit_paced(self, items: list[Item]) -> None:
        """These are to start now, or soon: behind at least as many others as there are of them, so that those have
        their turn too, and not many more. While they wait, the rate is not reached."""
        for crew in self._crews if items else ():
            if own := [item for item in items if item[0].crew is crew]:
                crew.submit(own, 2 * sum(gate.unstarted(crew) for gate in self._paces))

    def _fill(self, crew: Crew, classes: _Classes) -> None:
        """Give a crew the next ones of each priority, but few: what comes later waits behind them."""
        free = AHEAD_OF_RUNNERS - len(crew.queue)
        if free > 0 and (taken := classes.take(free)):
            crew.submit(taken)
        if classes:
            self._feed.low = AHEAD_OF_RUNNERS // 2
            self._feed.is_full = True  # so that a runner that finds few left says so

    # -- out

    def take_back(self, works: Collection[Work]) -> list[Item]:
        """Take out all of `works` that waits anywhere, in the order of the log; the rest keeps its order."""
        tps = {work.tp for work in works}
        items = self._take(lambda item: item[3].tp in tps and not _is_spent(item))
        items.sort(key=lambda item: item[2].offset)
        return items

    def take_unbegun(self, works: Collection[Work]) -> list[Item]:
        """`take_back`, but not the records of which another handler runs or ran: those end here."""
        items = self.take_back(works)
        joints = Counter(id(joint) for item in items if (joint := _joint_of(item)))
        unbegun: list[Item] = []
        begun: list[Item] = []
        for item in items:
            joint = _joint_of(item)
            (begun if joint and joints[id(joint)] < joint.handlers else unbegun).append(item)
        self.add(begun)
        return unbegun

    def take_cancelled(self, ids: Cancelled) -> list[Item]:
        """Take out what waits of these invocations, and have stopped what runs of them as far as it can be."""

        taken = self._take(lambda item: is_among(item, ids))
        for crew in self._crews:
            for item in crew.running():
                if is_among(item, ids):
                    crew.cancel_run(item)
        return taken

    def _take(self, is_wanted: Callable[[Item], bool]) -> list[Item]:
        """Out of all gates and queues."""
        gates: tuple[Gate | Pause, ...] = (*self._gates, self._retries)
        waiting = [ticket for gate in gates for ticket in gate.remove(lambda one: is_wanted(one.item))]
        for ticket in waiting:
            ticket.work.waiting -= 1
        taken = [ticket.item for ticket in waiting] + self._take_queued(is_wanted)
        for item in taken:
            if isinstance(item[3], Ticket):
                self._leave(item[3])
        return taken

    def _take_queued(self, is_wanted: Callable[[Item], bool]) -> list[Item]:
        taken: list[Item] = []
        for crew in self._crews:
            kept: list[Item] = []
            while True:
                try:
                    item = crew.queue.popleft()  # runners take from it at the same time: one of us gets each
                except IndexError:
                    break
                (taken if is_wanted(item) else kept).append(item)
            if kept:
                crew.submit(kept)
        for classes in self._classes:
            taken += classes.remove(is_wanted)
        return taken


def is_among(item: Item, ids: Cancelled) -> bool:
    """Whether it is one of these invocations."""
    return is_cancelled(ids, item[1], item[2], item[3].tp)


def _is_paced(item: Item) -> bool:
    """Whether its task has a rate limit."""
    return isinstance(item[3], Ticket) and any(isinstance(gate, RateGate) for gate in item[3].gates)


def _joint_of(item: Item) -> Joint | None:
    place = item[3].inner if isinstance(item[3], Ticket) else item[3]
    return place if isinstance(place, Joint) else None


def _is_spent(item: Item) -> bool:
    """Whether it counts as finished already: it must run here, or it never will."""
    return isinstance(item[3], Ticket) and isinstance(item[3].inner, Nowhere)


class _Classes:
    """What waits of each priority. Weighted, so that none starves; each bounded, so that none keeps the others out."""

    def __init__(self, priority_of: Mapping[str, str], in_flight_max: int) -> None:
        self._priority_of = priority_of
        self._waiting: dict[str, deque[Item]] = {priority: deque() for priority in WEIGHTS}
        self._max = max(1, in_flight_max // len(WEIGHTS))
        self._full: set[str] = set()

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    def add(self, items: list[Item]) -> None:
        for item in items:
            self._waiting[self._priority_of.get(published_on(item), "normal")].append(item)
        for priority, waiting in self._waiting.items():
            if len(waiting) >= self._max:
                self._full.add(priority)

    def take(self, count: int) -> list[Item]:
        """The next ones, at least `count` if there are so many: rounds in which each priority has its weight."""
        taken: list[Item] = []
        while len(taken) < count and self:
            for priority, weight in WEIGHTS.items():
                waiting = self._waiting[priority]
                taken += [waiting.popleft() for _ in range(min(weight, len(waiting)))]
        self._full = {one for one in self._full if len(self._waiting[one]) > self._max // 2}
        return taken

    @property
    def full_topics(self) -> list[str]:
        return [topic for topic, priority in self._priority_of.items() if priority in self._full]

    def remove(self, is_wanted: Callable[[Item], bool]) -> list[Item]:
        removed: list[Item] = []
        for priority, waiting in self._waiting.items():
            removed += [item for item in waiting if is_wanted(item)]
            self._waiting[priority] = deque(item for item in waiting if not is_wanted(item))
        return removed


def take_parked(works: Iterable[Work]) -> list[Item]:
    """What was held back of partitions that another should have."""
    taken: list[Item] = []
    for work in works:
        taken += work.parked
        work.parked = []
    return taken


def discard(items: Iterable[Item]) -> None:
    """Forget these. They stay unfinished, so they are delivered again."""
    for item in items:
        place = item[3]
        place.discard(item[2].offset)
        if isinstance(place, Ticket):
            place.forget()


def bytes_of(records: Sequence[Record]) -> int:
    """About how large they are: of many, which are small since a fetch is bounded, a few dozen are looked at."""
    some = records[:: 1 + len(records) // 32]
    return sum([len(record[3] or b"") for record in some]) * len(records) // max(1, len(some))
