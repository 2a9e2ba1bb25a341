"""A child process of a worker: runs the invocations it is told, one at a time.

`python -m taskq.worker.executors.child LINK LIFELINE`, two descriptors (calls.py). It is made like the worker: it
imports the app, opens its lifespan, and has an event loop, on the main thread, on which `async def` tasks run; a thread
reads the link and runs `def` tasks itself. It ends when there is nothing more to read, or is killed:

- by the worker, when an invocation is over time or cancelled: the whole process group, so that what a task has started
  ends with it. That it must not outlive
- when the lifeline ends, since the worker is gone, however suddenly: by the kernel where that can be asked to, since
  no thread of ours has its turn while C code keeps the interpreter for itself; by a thread otherwise

SIGTERM, SIGINT and SIGHUP are for the worker, though a service manager sends them to all its processes: it drains, and
the child goes on. Processes that a task starts heed them as usual.
"""

from __future__ import annotations

import fcntl
import importlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread

from taskq.app import TaskQ
from taskq.broker.port import Record, TopicPartition
from taskq.config import with_overrides
from taskq.context import Delivery, Running, enter, limit
from taskq.decorators import NO_RETRY, Task
from taskq.errors import TaskNotFound
from taskq.logs import log_to_stderr
from taskq.message import decode_envelope
from taskq.retry import Retry
from taskq.worker.execution import refuse_not_run
from taskq.worker.executors import calls
from taskq.worker.executors.async_ import backend_options
from taskq.worker.executors.calls import Call, Done, Failed, Link, Setup, decode_call, decode_setup, encode
from taskq.worker.retries import judge, traceback_of
from taskq.worker.signals import stop_signals

DONE = encode(Done())

_OOM_SCORE = Path("/proc/self/oom_score_adj")
_FIRST_TO_GO = "1000"

_log = logging.getLogger("taskq.worker")


class Child:
    """What has been set up. Making it raises whatever the app's modules do when they are imported."""

    def __init__(self, setup: Setup) -> None:
        sys.path[:] = calls.decode_path(setup.path)
        if setup.logs:
            log_to_stderr(setup.settings["log_level"], setup.settings["log_format"])
        for module in setup.modules:
            importlib.import_module(module)
        self.app: TaskQ | None = None
        self.is_ready = False
        self._is_ending = False
        self._references = setup.tasks
        self._found: dict[int, tuple[Task[Any, Any], Callable[..., Any]]] = {}
        """Tasks, and what to call."""
        self._oom_score: str | None = None
        """What it was, while it is another."""
        for number, reference in enumerate(setup.tasks):
            with suppress(TaskNotFound):  # who calls it is told
                app, task = reference.find()
                if self.app is None:  # all are of one
                    self.app = app
                    _configure(app, setup.settings)
                self._found[number] = (task, app.wrapped(task))

    async def serve(self, link: Link) -> None:
        """Say that it is ready, and answer calls until there are no more. Raises what the lifespan does."""
        async with self.app.open_lifespan() if self.app is not None else nullcontext():
            link.send(DONE)
            self.is_ready = True
            await anyio.to_thread.run_sync(self._serve, link, abandon_on_cancel=True)

    def _serve(self, link: Link) -> None:
        with suppress(OSError):  # the worker has let go of this child, or is gone
            while (message := _next(link)) is not None:
                answer = self._answer(decode_call(message))
                if self._is_ending:
                    return
                link.send(answer)

    def _answer(self, call: Call) -> bytes:
        """Run a call; return what to say of it."""
        self._set_oom_score(is_suspect=call.is_suspect)
        policy = NO_RETRY
        try:
            if call.task not in self._found:
                self._references[call.task].find()
            task, run = self._found[call.task]
            policy = task.retry
            copy_context().run(self._run, task, run, call)
        except BaseException as error:
            return failed(policy, error)
        return DONE

    def _run(self, task: Task[Any, Any], run: Callable[..., Any], call: Call) -> None:
        envelope = decode_envelope(call.value)
        record = Record(call.offset, call.timestamp_ms, call.key, call.value, call.headers)
        what = Running(task, call.group, TopicPartition(call.topic, call.partition), call.delivery)
        delivery = (what, envelope, record, what)
        _enter(delivery, call)
        args, kwargs = task.decode_args(envelope)
        if not task.is_async:
            refuse_not_run(run(*args, **kwargs))
            return

        async def run_async() -> BaseException | None:
            _enter(delivery, call)
            try:
                refuse_not_run(await run(*args, **kwargs))
            except BaseException as error:  # SystemExit, too, which would end the loop
                # If the lifespan has failed, and all is cancelled, that is not how the attempt ended.
                self._is_ending = anyio.current_effective_deadline() == -math.inf
                return error
            return None

        error = anyio.from_thread.run(run_async)
        if error is not None:
            raise error

    def _set_oom_score(self, *, is_suspect: bool) -> None:
        if is_suspect == (self._oom_score is not None) or not _OOM_SCORE.exists():
            return
        with suppress(OSError):
            before, self._oom_score = self._oom_score, _OOM_SCORE.read_text() if is_suspect else None
            _OOM_SCORE.write_text(before or _FIRST_TO_GO)


def _enter(delivery: Delivery, call: Call) -> None:
    enter(delivery)
    if call.timeout_s is not None:
        limit(delivery, time.time() + call.timeout_s)


def failed(policy: Retry, error: BaseException) -> bytes:
    """What to say of a call that ended with `error`, which nobody else will ever see."""
    return encode(Failed(judge(policy, error), traceback_of(error)))


def _configure(app: TaskQ, settings: dict[str, Any]) -> None:
    """Give an app the worker's settings, unless it has them: one that has opened its broker takes no others."""
    wanted = with_overrides(app.settings, **settings)
    if wanted != app.settings:
        app.configure(**settings)
    if wanted.broker == "memory:":
        app.refuse_broker(
            "the broker is the worker's memory, and this is a child process of it: publish from a task that runs in "
            "the worker itself, or use a broker that processes can share"
        )


# --- the process


def die_with(lifeline: int) -> None:
    """Have this process and all of its group killed when the other end of `lifeline` is closed."""
    if sys.platform == "linux":
        with suppress(OSError):
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:
        os.read(lifeline, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="taskq-lifeline", daemon=True).start()


def _leave_signals_to_the_worker(link: Link) -> None:
    before = {number: signal.getsignal(number) for number in stop_signals()}
    for number in before:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs that a task runs would inherit

    def be_another() -> None:
        """A fork of a task's: it heeds signals, and is not at the end of the link."""
        link.close()
        for number, handler in before.items():
            signal.signal(number, handler)

    os.register_at_fork(after_in_child=be_another)


def _next(link: Link) -> bytes | None:
    while (message := link.take()) is None:
        if not link.read():
            return None
    return message


def main(link_fd: int, lifeline: int) -> int:
    """The exit code."""
    calls.in_child = True
    for fd in (link_fd, lifeline):
        os.set_inheritable(fd, False)
    die_with(lifeline)
    link = Link.inherited(link_fd)
    _leave_signals_to_the_worker(link)
    message = _next(link)
    if message is None:
        return 0
    child = None
    try:
        setup = decode_setup(message)
        child = Child(setup)
        anyio.run(child.serve, link, backend=setup.backend, backend_options=backend_options(setup.backend))
    except BaseException as error:
        if child is None or not child.is_ready:
            with suppress(OSError):  # nobody listens any more
                link.send(failed(NO_RETRY, error))
        else:
            _log.critical("the lifespan of the app failed in a child process: %s", error, exc_info=error)
        return 1
    finally:
        link.close()  # however long threads go on that tasks have started
        if child is not None and child.app is not None:
            child.app.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
