"""The app's lifespan around a worker's work: opened before anything runs, closed when nothing does any more.

It is opened and closed by one coroutine, as async context managers want it, and the work is done inside: task groups of
its own are around the work. Should one of its tasks fail, the work is cancelled, and the worker stops at once: what
tasks use is gone. A worker that is told to stop while the lifespan is opening waits for it, and closes it in order; one
that is told twice cancels it, or its closing if that is still to come. One that ends by itself, which leaves the worker
without what it has opened, ends the worker too, whether it says why or not.
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
_LEFT = "ended while the worker ran"

_log = logging.getLogger("taskq.worker")


class Life:
    """Of one app, once. All but `stop_now` on the event loop."""

    def __init__(self, app: TaskQ) -> None:
        self._app = app
        self._stage = _OPENING
        self._is_hurried = False
        self._scope: anyio.CancelScope | None = None
        self._call_soon: Callable[[Callable[[], None]], object] | None = None

    async def around(
        self, work: Callable[[], Awaitable[None]], call_soon: Callable[[Callable[[], None]], object]
    ) -> Exception | None:
        """Do `work` inside the lifespan; return what was wrong with that, which is logged. Raises what `work` does."""
        own: BaseException | None = None
        self._call_soon = call_soon
        with anyio.CancelScope() as scope:
            self._scope = scope
            if self._is_hurried and self._app.has_lifespan:
                scope.cancel()
            try:
                async with self._app.open_lifespan():
                    self._stage = _WORKING
                    try:
                        await work()
                        self._stage = _CLOSING
                        if self._is_hurried:
                            scope.cancel()
                    except BaseException as error:
                        own = error
                        raise
            except Exception as error:
                if error is own:
                    raise
                return self._tell(self._stage, error)
        if scope.cancelled_caught:
            _log.warning("the lifespan of the app %s was cancelled: the worker is to stop at once", self._app.name)
        elif self._stage != _CLOSING:  # it has kept to itself what ended the work
            return self._tell(_LEFT, own if isinstance(own, Exception) else RuntimeError("the work was cancelled"))
        return None

    def _tell(self, how: str, error: Exception) -> Exception:
        _log.critical("the lifespan of the app %s %s: %s", self._app.name, how, error, exc_info=error)
        return error

    def stop_now(self) -> None:
        """Cancel it if it is opening or closing, or when it will. From any thread, and from signal handlers."""
        self._is_hurried = True
        if self._call_soon is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._call_soon(self._cancel)

    def _cancel(self) -> None:
        if self._scope is not None and self._stage != _WORKING:
            self._scope.cancel()
