"""What the pages see without a reload: server-sent events, and who wakes them.

A worker is another process, so the web server learns of a new feed row from the database itself: `PRAGMA data_version`
changes when any other connection has committed. One look every LOOK_S serves every open page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable

import anyio
import anyio.to_thread
from attrs import frozen

from examples.sns_feed.database import Database
from examples.sns_feed.store import now_ms

LOOK_S = 0.05
KEEP_ALIVE_S = 15.0
HISTORY_S = 60.0


class Signal:
    """Wakes everyone who waits. Take `next()`, look at the state, then wait: nothing in between is missed."""

    def __init__(self) -> None:
        self.closed = False
        self.listeners = 0
        self._event = anyio.Event()
        self._wanted = anyio.Event()

    def next(self) -> anyio.Event:
        return self._event

    def fire(self) -> None:
        self._event, fired = anyio.Event(), self._event
        fired.set()

    def want(self) -> None:
        """Have whoever fires this look again, even if nobody listens."""
        self._wanted.set()

    async def wanted(self) -> None:
        """Wait until somebody listens, or wants a look."""
        if not self.listeners:
            await self._wanted.wait()
            self._wanted = anyio.Event()

    def close(self) -> None:
        """Let every stream end: a server can't stop while answers are still being sent."""
        self.closed = True
        self.fire()


@frozen
class Sample:
    at_ms: int
    backlog: int


class Live:
    """The web server's view of what changes: the database, and the backlog with its recent past.

    While no page is open and there is no backlog, nothing is looked at.
    """

    def __init__(self, database: Database, read_backlog: Callable[[], int]) -> None:
        self.rows = Signal()
        self.samples = Signal()
        self._history: deque[Sample] = deque(maxlen=int(HISTORY_S / LOOK_S))
        self._database = database
        self._read_backlog = read_backlog

    async def watch_database(self) -> None:
        with self._database.reading() as db:
            seen = None
            while True:
                version = db.execute("PRAGMA data_version").fetchone()
                if version != seen:
                    seen = version
                    self.rows.fire()
                await self.rows.wanted()
                await anyio.sleep(LOOK_S)

    async def watch_backlog(self) -> None:
        while True:
            backlog = await anyio.to_thread.run_sync(self._read_backlog)
            self._add(backlog)
            if not backlog:
                await self.samples.wanted()
                self._add(backlog)  # as it was until now, after a rest
            await anyio.sleep(LOOK_S)

    def _add(self, backlog: int) -> None:
        self._history.append(Sample(now_ms(), backlog))
        self.samples.fire()

    def since(self, at_ms: int) -> list[Sample]:
        """Samples newer than that, oldest first."""
        return [sample for sample in self._history if sample.at_ms > at_ms]

    def close(self) -> None:
        self.rows.close()
        self.samples.close()


def sse(data: str, *, event: str, id: int | None = None) -> str:  # noqa: A002 - the field's own name
    """One server-sent event. The browser joins the data lines again."""
    lines = [f"event: {event}", *(f"data: {line}" for line in data.splitlines())]
    if id is not None:
        lines.insert(0, f"id: {id}")
    return "\n".join(lines) + "\n\n"


async def stream(signal: Signal, news: Callable[[], AsyncIterator[str]]) -> AsyncIterator[str]:
    """Send what `news` yields, now and each time the signal fires, until it closes; comments keep a quiet line open."""
    signal.listeners += 1
    signal.want()
    try:
        while not signal.closed:
            changed = signal.next()
            async for event in news():
                yield event
            with anyio.move_on_after(KEEP_ALIVE_S) as quiet:
                await changed.wait()
            if quiet.cancelled_caught:
                yield ": still here\n\n"
    finally:
        signal.listeners -= 1
