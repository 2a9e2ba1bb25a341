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
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import count
from typing import Protocol

from taskq.worker.work import Item, Joint, Work

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
    """What gates have in common that let tickets in as they came."""

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()

    def remove(self, is_wanted: Wanted) -> list[Ticket]:
        self._waiting, removed = _split(self._waiting, is_wanted)
        return removed


class WidthGate(_Queue):
    """At most `width` at once in this process."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._left = width

    def enter(self, ticket: Ticket) -> bool:
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return True
        self._waiting.append(ticket)
        return False

    def release(self, now: float) -> list[Ticket]:
        released = []
        while self._waiting and self._left > 0:
            self._left -= 1
            released.append(self._waiting.popleft())
        return released

    def leave(self, ticket: Ticket) -> None:
        self._left += 1

    def next_at(self) -> float:
        return -math.inf if self._waiting and self._left > 0 else math.inf


class RateGate(_Queue):
    """Starts at most `rate()` a second, evenly: the worker's share of the group's limit, as it is just then.

    What was not used is kept for `BURST_S`, so that a poller that comes late loses nothing.
    """

    BURST_S = 0.1

    def __init__(self, rate: Callable[[], float], now: Callable[[], float]) -> None:
        super().__init__()
        self._rate = rate
        self._now = now
        self._tokens = 1.0
        self._counted_at = now()

    def enter(self, ticket: Ticket) -> bool:
        self._refill(self._now())
        if not self._waiting and self._tokens >= 1:
            self._tokens -= 1
            return True
        self._waiting.append(ticket)
        return False

    def release(self, now: float) -> list[Ticket]:
        self._refill(now)
        released = []
        while self._waiting and self._tokens >= 1:
            self._tokens -= 1
            released.append(self._waiting.popleft())
        return released

    def leave(self, ticket: Ticket) -> None:
        """A start is a start, however it ends."""

    def next_at(self) -> float:
        rate = self._rate()
        if not self._waiting or rate <= 0:
            return math.inf
        return self._counted_at + max(0.0, 1 - self._tokens) / rate

    def _refill(self, now: float) -> None:
        rate = self._rate()
        # Never more than one and what a late poller may have missed: a pause must not be followed by a flood.
        self._tokens = min(self._tokens + (now - self._counted_at) * rate, 1 + rate * self.BURST_S)
        self._counted_at = now


class BatchGate(WidthGate):
    """Lets several pass together, after something was done for all of them: marked, or committed. At most `width` at
    once."""

    def __init__(self, width: int, before: Callable[[list[Ticket]], bool]) -> None:
        super().__init__(width)
        self._before = before
        """False: not now."""
        self._again_at = 0.0

    def enter(self, ticket: Ticket) -> bool:
        self._waiting.append(ticket)
        return False

    def release(self, now: float) -> list[Ticket]:
        free = min(self._left, len(self._waiting))
        if not free or now < self._again_at:
            return []
        batch = [self._waiting.popleft() for _ in range(free)]
        if not self._before(batch):
            self._waiting.extendleft(reversed(batch))
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
