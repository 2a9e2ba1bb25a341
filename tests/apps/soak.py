"""Tasks of every kind that leave a line in the audit: what, id, attempt, delivery, process, time."""

from __future__ import annotations

import os
import time

import anyio
import anyio.lowlevel

from taskq import Retry, TaskQ, current

app = TaskQ("soak")
_fd = os.open(os.environ.get("TEST_AUDIT", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def write(what: str) -> None:
    told = (what, current.id, current.attempt, current.delivery, os.getpid(), f"{time.time():.6f}")
    os.write(_fd, f"{' '.join(map(str, told))}\n".encode())


@app.task(topic="soak", group="soak")
def quick() -> None:
    write("done")


@app.task(topic="soak", group="soak")
async def quick_async() -> None:
    await anyio.lowlevel.checkpoint()
    write("done")


@app.task(topic="soak", group="soak")
def slow(seconds: float) -> None:
    time.sleep(seconds)
    write("done")


@app.task(topic="soak", group="soak", timeout=0.2, retry=Retry(1, base=0.01))
async def over_time() -> None:
    await anyio.sleep(3600)


@app.task(topic="soak", group="soak", retry=Retry(5, base=0.02, cap=0.2))
def flaky(failures: int) -> None:
    if current.attempt <= failures:
        raise OSError(f"attempt {current.attempt}")
    write("done")


@app.task(topic="soak", group="soak", retry=Retry(2, base=0.02))
async def doomed() -> None:
    raise ValueError("always")


@app.task(topic="soak", group="soak")
def later(times: int) -> None:
    if current.attempt <= times:
        raise Retry.later(0.1)
    write("done")


@app.task(topic="soak", group="soak")
def chain(left: int) -> None:
    """Publishes the next link, under an id that is known beforehand, and is done."""
    if left:
        name, _, number = current.id.rpartition("-")
        chain.options(id=f"{name}-{int(number) + 1}").delay(left - 1)
    write("done")


@app.task(topic="ordered", group="soak", order="key", key=lambda key: key, retry=Retry(50, base=0.005, cap=0.05))
async def ordered(key: str, number: int) -> None:
    """Fails now and then, whatever the number: its key has to wait for it."""
    if hash((number, current.attempt, os.getpid())) % 10 == 0:
        raise OSError("not now")
    write(f"{key}:{number}")


@app.task(topic="limited", group="limited", rate_limit="100/s")
def limited() -> None:
    write("done")
