"""Tasks that run in child processes. Most do there what nobody wants in a worker."""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from uuid import UUID

import anyio
import anyio.lowlevel
import sniffio

from taskq import Reject, Retry, TaskQ, current
from tests.apps.lines import write

app = TaskQ("processes")


class Mild(Exception):
    pass


class Grave(Mild):
    pass


class Odd(Exception):
    def __str__(self) -> str:
        return "half a pair: \udc80"


def here() -> str:
    return f"{os.getpid()} {time.monotonic():.3f}"


@app.task(topic="feed", group="feed")
def in_the_worker(number: int) -> None:
    write(f"worker {number} {os.getpid()}")


@app.task(topic="feed", group="feed", executor="process")
def note(number: int) -> None:
    write(f"{number} {os.getpid()}")


@app.task(topic="feed", group="feed", executor="process", timeout=2_600_000)
def take_a_month(number: int) -> None:
    write(f"{number} {os.getpid()}")


@app.task(topic="feed", group="feed", executor="process")
def leave_a_thread(name: str) -> None:
    """So that the child does not end by itself."""
    threading.Thread(target=time.sleep, args=(600,)).start()
    stay(name)


@app.task(topic="feed", group="feed", executor="process")
def break_the_link() -> None:
    link = socket.socket(fileno=os.dup(int(sys.argv[1])))
    link.shutdown(socket.SHUT_RDWR)
    link.close()


@app.task(topic="feed", group="feed", executor="process")
def take(when: UUID, names: set[str], *more: float, flag: bool = False) -> None:
    write(f"{when} {sorted(names)} {more} {flag}")


def _plain(fn: Callable[[], object]) -> Callable[[], object]:
    @functools.wraps(fn)
    def call() -> object:
        return fn()

    return call


@app.task(topic="feed", group="feed", executor="process")
@_plain
async def forget() -> None: ...


@app.task(topic="feed", group="feed", executor="process")
async def forget_async() -> object:
    return anyio.lowlevel.checkpoint()


@app.task(topic="feed", group="feed", executor="process", timeout=20)
def tell_current() -> None:
    left = (current.deadline or 0) - time.time()
    place = (current.topic, current.partition, current.offset)
    write(f"{current.task.name} {current.group} {place} {current.id} {current.attempt} {current.delivery}")
    write(f"{current.headers} {10 < left <= 20}")


@app.task(topic="feed", group="feed", executor="process")
async def tell_loop(number: int) -> None:
    await anyio.lowlevel.checkpoint()
    write(f"{number} {sniffio.current_async_library()} {current.id}")


@app.task(topic="feed", group="feed", executor="process")
def publish(number: int) -> None:
    note.delay(number)


@app.task(topic="feed", group="feed", executor="process")
def log(text: str) -> None:
    current.logger.info("says %s", text)
    logging.getLogger("debugging").debug("not this")


@app.task(topic="feed", group="feed", executor="process")
def stay(name: str) -> None:
    """Runs until somebody makes the file beside the audit."""
    write(f"start {name} {here()}")
    path = os.path.join(os.path.dirname(os.environ["TEST_AUDIT"]), name)
    while not os.path.exists(path):
        time.sleep(0.005)
    write(f"end {name} {here()}")


def _stay_with_family() -> None:
    family = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    write(f"start {family.pid} {here()}")
    time.sleep(600)


@app.task(topic="feed", group="feed", executor="process")
def stay_with_family() -> None:
    _stay_with_family()


@app.task(topic="feed", group="feed", executor="process", timeout=0.5)
def be_late() -> None:
    _stay_with_family()


@app.task(topic="feed", group="feed", executor="process", timeout=0.5)
async def be_late_async() -> None:
    _stay_with_family()


@app.task(topic="feed", group="feed", executor="process")
def keep_the_interpreter() -> None:
    """C code that lets no other thread have its turn."""
    write(f"start {here()}")
    re.match(r"(a+)+$", "a" * 60 + "b")


@app.task(topic="feed", group="feed")
def leave_a_fork_of_the_worker() -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    write(f"fork {pid}")


def _die(how: str) -> None:
    write(f"dies {how} {here()}")
    if how == "exit":
        os._exit(3)
    if how == "crash":
        ctypes.string_at(0)
    if how == "fork":
        if os.fork():
            os._exit(4)
        time.sleep(600)
    if how == "hang up":
        os.closerange(3, 10_000)
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(topic="feed", group="feed", executor="process")
def die(how: str) -> None:
    _die(how)


@app.task(topic="feed", group="feed", executor="process", retry=Retry(2, base=0))
def die_but_once(how: str) -> None:
    if current.attempt == 1:
        _die(how)
    write(f"lives {current.attempt} {here()}")


@app.task(topic="feed", group="feed", executor="process", retry=Retry(1, base=0, on=(Mild,), not_on=(Grave,)))
def fail(kind: str) -> None:
    write(f"{kind} {current.attempt}")
    if kind == "reject":
        raise Reject("no")
    if kind == "exit":
        sys.exit(7)
    raise {"mild": Mild, "grave": Grave, "other": ValueError, "odd": Odd}[kind](f"it is {kind}")


@app.task(topic="feed", group="feed", executor="process")
def later() -> None:
    write(f"later {current.attempt}")
    if current.attempt < 3:
        raise Retry.later(0.01)


@app.task(topic="feed", group="feed", executor="process")
def tell_oom_score() -> None:
    with open("/proc/self/oom_score_adj") as file:
        write(f"{os.getpid()} {file.read().strip()}")
