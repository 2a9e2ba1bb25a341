"""The app's lifespan around a worker's work: opened before anything runs, closed when nothing does any more.

It is opened and closed by one coroutine, as async context managers want it, and the work is done inside: task groups of
its own are around the work. Should one of its tasks fail, the work is cancelled, and the worker stops at once: what
tasks use is gone. A worker that is told to stop while the lifespan is opening waits for it, and closes it in order; one
that is told twice cancels it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from taskq.app import TaskQ

_OPENING = "failed at its start; nothing has run"
_WORKING = "failed while the worker ran"
_CLOSING = "failed at its end"

_log = logging.getLogger("taskq.worker")


class Life:
    """Of one app, once. All but `stop_now` on the event loop."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app
        self._stage = _OPENING
        self._scope: anyio.CancelScope | None = None
        self._call_soon: Callable[[Callable[[], None]], object] | None = None

    async def around(
        self, work: Callable[[], Awaitable[None]], call_soon: Callable[[Callable[[], None]], object]
    ) -> Exception | None:
        """Do `work` inside the lifespan; return what the lifespan raised, which is logged. Raises what `work` does."""
        own: BaseException | None = None
        self._call_soon = call_soon
        with anyio.CancelScope() as scope:
            self._scope = scope
            try:
                async with self._app.open_lifespan():
                    self._stage = _WORKING
                    try:
                        await work()
                        self._stage = _CLOSING
                    except BaseException as error:
                        own = error
                        raise
            except Exception as error:
                if error is own:
                    raise
                _log.critical("the lifespan of the app %s %s: %s", self._app.name, self._stage, error, exc_info=error)
                return error
        if scope.cancelled_caught:
            _log.warning("the lifespan of the app %s was cancelled: the worker is to stop at once", self._app.name)
        return None

    def stop_now(self) -> None:
        """Cancel it if it is opening or closing. From any thread, and from signal handlers."""
        if self._call_soon is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._call_soon(self._cancel)

    def _cancel(self) -> None:
        if self._scope is not None and self._stage != _WORKING:
            self._scope.cancel()
