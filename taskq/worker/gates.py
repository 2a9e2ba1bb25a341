"""What an invocation may have to wait for between the log and a runner: its turn, a limit, a mark, a commit.

Most wait for nothing and never come here. The others are wrapped: a `Ticket` stands in the item where its `Work` would,
and goes through its gates one after the other. Everything here belongs to the poller's thread. When a ticket's item has
ended, whoever ran it says so (`Feed.free`), and the poller leaves its gates for it, which may let others in.

    enter     may this one pass now? If not, the gate keeps it
    release   those that may pass by now: asked each time the poller comes round, and when `next_at` says
    leave     one that had passed has ended, or was taken back
    remove    take back those that wait and are wanted: their partition is another worker's now, or they were cancelled
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import count
from typing import Protocol

from taskq.worker.rounds import Rounds
from taskq.worker.work import Crew, Item, Joint, Work, published_on

AGAIN_S = 0.25
"""How soon to try again what could not be stored."""


class Ticket:
    """An item on its way through gates. Stands in it where a `Work` would."""

    __slots__ = ("_free", "delivery", "gates", "inner", "item", "not_before", "passed", "tp", "work")

    def __init__(
        self,
        work: Work,
        inner: Work | Joint,
        gates: Sequence[Gate],
        free: Callable[[Ticket], None],
        delivery: int = 1,
    ) -> None:
        self.work = work
        self.inner: Work | Joint | Nowhere = inner
        self.gates = gates
        self.passed = 0
        """How many of them it has passed."""
        self.delivery = delivery
        self.tp = work.tp
        self.not_before = 0.0
        """If it is tried again: when (monotonic)."""
        self.item: Item
        self._free = free

    def finish(self, offset: int) -> None:
        self.inner.finish(offset)
        self._free(self)

    def discard(self, offset: int) -> None:
        """Its gates are left by whoever discards it."""
        self.inner.discard(offset)

    def forget(self) -> None:
        """It has ended, and its gates are left. Else it and its item would keep each other, and with them its `Work`,
        until garbage is collected, which a worker does seldom."""
        del self.item


class Nowhere:
    """Where an item ends whose offset was finished before it ran: it is handed out until then."""

    def __init__(self, work: Work) -> None:
        self.finish = work.discard
        self.discard = work.discard


Wanted = Callable[[Ticket], bool]


class Gate(Protocol):
    """See the module docstring."""

    def enter(self, ticket: Ticket) -> bool: ...
    def release(self, now: float) -> list[Ticket]: ...
    def leave(self, ticket: Ticket) -> None: ...
    def remove(self, is_wanted: Wanted) -> list[Ticket]: ...
    def next_at(self) -> float:
        """When (monotonic) somebody may pass without anybody having left; infinity if that can't be."""
        ...


def _split(waiting: Iterable[Ticket], is_wanted: Wanted) -> tuple[deque[Ticket], list[Ticket]]:
    """Those that stay, and those that are wanted."""
    kept: deque[Ticket] = deque()
    taken: list[Ticket] = []
    for ticket in waiting:
        (taken if is_wanted(ticket) else kept).append(ticket)
    return kept, taken


class _Lane:
    __slots__ = ("active", "waiting")

    def __init__(self) -> None:
        self.active: Ticket | None = None
        self.waiting: deque[Ticket] = deque()


class OrderGate:
    """One at a time of each key, or of each partition, in the order of their offsets.

    Who is tried again in place stays in its lane meanwhile: nobody overtakes it.
    """

    def __init__(self) -> None:
        self._lanes: dict[Hashable, _Lane] = {}
        self._free: list[_Lane] = []
        """Lanes whose active one has left."""

    def enter(self, ticket: Ticket) -> bool:
        key = self._key_of(ticket)
        if key is None:
            return True
        lane = self._lanes.setdefault(key, _Lane())
        if lane.active is None and not lane.waiting:
            lane.active = ticket
            return True
        lane.waiting.append(ticket)
        return False

    def release(self, now: float) -> list[Ticket]:
        released = []
        for lane in self._free:
            if lane.active is None and lane.waiting:
                lane.active = lane.waiting.popleft()
                released.append(lane.active)
        self._free.clear()
        return released

    def leave(self, ticket: Ticket) -> None:
        key = self._key_of(ticket)
        lane = self._lanes.get(key)
        if lane is None or lane.active is not ticket:
            return
        lane.active = None
        if lane.waiting:
            self._free.append(lane)
        else:
            del self._lanes[key]

    def remove(self, is_wanted: Wanted) -> list[Ticket]:
        removed: list[Ticket] = []
        for key, lane in list(self._lanes.items()):
            if lane.waiting:
                lane.waiting, taken = _split(lane.waiting, is_wanted)
                removed += taken
                if lane.active is None and not lane.waiting:
                    del self._lanes[key]
        return removed

    def next_at(self) -> float:
        return -math.inf if self._free else math.inf

    @staticmethod
    def _key_of(ticket: Ticket) -> Hashable:
        job, _, record, _ = ticket.item
        if job.task.declared.order == "partition":
            return ticket.tp
        return None if record.key is None else (ticket.tp, record.key)


class _Queue:
    """What gates have in common that let tickets in as they came, each priority by itself.

    `priority_of` says of a topic which it has, if the group has any.
    """

    def __init__(self, priority_of: Mapping[str, str]) -> None:
        self._priority_of = priority_of
        self._waiting: Rounds[Ticket] = Rounds(is_weighted=bool(priority_of))

    def _priority(self, ticket: Ticket) -> str:
        return self._priority_of.get(published_on(ticket.item), "normal") if self._priority_of else "normal"

    def _wait(self, ticket: Ticket) -> None:
        self._waiting.add(ticket, self._priority(ticket))

    def remove(self, is_wanted: Wanted) -> list[Ticket]:
        return self._waiting.remove(is_wanted)


class WidthGate(_Queue):
    """At most `width` at once in this process."""

    def __init__(self, width: int, priority_of: Mapping[str, str]) -> None:
        super().__init__(priority_of)
        self._left = width

    def enter(self, ticket: Ticket) -> bool:
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return True
        self._wait(ticket)
        return False

    def release(self, now: float) -> list[Ticket]:
        released = []
        while self._waiting and self._left > 0:
            self._left -= 1
            released.append(self._waiting.take())
        return released

    def leave(self, ticket: Ticket) -> None:
        self._left += 1

    def next_at(self) -> float:
        return -math.inf if self._waiting and self._left > 0 else math.inf


class RateGate(_Queue):
    """Starts at most `rate()` a second, evenly: the worker's share of the group's limit, as it is just then.

    What was not used is kept for `BURST_S`, so that a poller that comes late loses nothing. What has passed and waits
    for a runner counts as not used: when all of them are busy for long, few are let through, so that no flood starts
    when they are free again. Nobody tells when a runner begins; it is looked for in what runs, when that matters.
    """

    BURST_S = 0.1
    LOOK_S = 0.01
    """How soon to look whether runners have begun."""

    def __init__(self, rate: Callable[[], float], now: float, priority_of: Mapping[str, str]) -> None:
        super().__init__(priority_of)
        self._rate = rate
        self._tokens = 1.0
        self._counted_at = now
        self._unstarted: set[Ticket] = set()
        """Those that have passed and, as far as is known, not begun."""

    def unstarted(self, crew: Crew) -> int:
        """How many have passed and may wait for a runner of that crew."""
        return sum(ticket.item[0].crew is crew for ticket in self._unstarted)

    def enter(self, ticket: Ticket) -> bool:
        self._wait(ticket)
        return False

    def release(self, now: float) -> list[Ticket]:
        if not self._waiting:
            return []
        self._refill(now)
        released: list[Ticket] = []
        while self._waiting and self._tokens >= 1:
            self._tokens -= 1
            released.append(self._waiting.take())
        self._unstarted.update(released)
        return released

    def leave(self, ticket: Ticket) -> None:
        self._unstarted.discard(ticket)  # a start is a start, however it ended

    def next_at(self) -> float:
        rate = self._rate()
        if not self._waiting or rate <= 0:
            return math.inf
        wait_s = max(0.0, 1 - self._tokens) / rate
        if len(self._unstarted) + 1 > self._most(rate):
            wait_s = max(wait_s, self.LOOK_S)
        return self._counted_at + wait_s

    def _most(self, rate: float) -> float:
        return 1 + rate * self.BURST_S

    def _refill(self, now: float) -> None:
        rate = self._rate()
        tokens = self._tokens + max(0.0, now - self._counted_at) * rate
        if tokens + len(self._unstarted) > self._most(rate):
            self._forget_started()
        self._tokens = max(0.0, min(tokens, self._most(rate) - len(self._unstarted)))
        self._counted_at = now

    def _forget_started(self) -> None:
        crews = {id(crew): crew for ticket in self._unstarted if (crew := ticket.item[0].crew)}
        running = {id(item) for crew in crews.values() for item in crew.running()}
        self._unstarted = {ticket for ticket in self._unstarted if id(ticket.item) not in running}


class BatchGate(WidthGate):
    """Lets several pass together, after something was done for all of them: marked, or committed. At most `width` at
    once."""

    def __init__(self, width: int, before: Callable[[list[Ticket]], bool], priority_of: Mapping[str, str]) -> None:
        super().__init__(width, priority_of)
        self._before = before
        """False: not now."""
        self._again_at = 0.0

    def enter(self, ticket: Ticket) -> bool:
        self._wait(ticket)
        return False

    def release(self, now: float) -> list[Ticket]:
        free = min(self._left, len(self._waiting))
        if not free or now < self._again_at:
            return []
        batch = [self._waiting.take() for _ in range(free)]
        if not self._before(batch):
            for ticket in reversed(batch):
                self._waiting.put_back(ticket, self._priority(ticket))
            self._again_at = now + AGAIN_S
            return []
        self._left -= free
        return batch

    def next_at(self) -> float:
        return self._again_at if self._waiting and self._left >= 1 else math.inf


class Pause:
    """Where those wait that are tried again in place, each until its time. No gate of any job's: entered by `add`."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Ticket]] = []
        self._numbers = count()

    def add(self, ticket: Ticket, at: float) -> None:
        heapq.heappush(self._waiting, (at, next(self._numbers), ticket))

    def release(self, now: float) -> list[Ticket]:
        """Those whose time has come."""
        released = []
        while self._waiting and self._waiting[0][0] <= now:
            released.append(heapq.heappop(self._waiting)[2])
        return released

    def remove(self, is_wanted: Wanted) -> list[Ticket]:
        """As a gate does."""
        removed = [ticket for _, _, ticket in self._waiting if is_wanted(ticket)]
        self._waiting = [one for one in self._waiting if not is_wanted(one[2])]
        heapq.heapify(self._waiting)
        return removed

    def next_at(self) -> float:
        return self._waiting[0][0] if self._waiting else math.inf
