"""Tasks that leave a trace: a line of the file TEST_AUDIT for each run."""

from __future__ import annotations

import os
import threading
import time

import anyio

from taskq import Reject, TaskQ, current

app = TaskQ("audit")
_fd = os.open(os.environ.get("TEST_AUDIT", os.devnull), os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def write(line: str) -> None:
    os.write(_fd, f"{line}\n".encode())


@app.task(topic="feed", group="feed")
def note(number: int) -> None:
    write(str(number))


@app.task(topic="feed", group="feed")
async def note_async(number: int) -> None:
    await anyio.lowlevel.checkpoint()
    write(str(number))


@app.task(topic="feed", group="feed")
def note_when_and_where(number: int) -> None:
    """About 1 ms of work; then the number, the process and the time (monotonic)."""
    threading.Event().wait(0.001)
    write(f"{number} {os.getpid()} {time.monotonic():.4f}")


@app.task(topic="feed", group="feed")
def note_when_done(number: int, seconds: float) -> None:
    write(f"start {number}")
    threading.Event().wait(seconds)
    write(f"end {number}")


@app.task(topic="feed", group="feed")
async def note_when_done_async(number: int, seconds: float) -> None:
    write(f"start {number}")
    with anyio.move_on_after(seconds):
        await anyio.Event().wait()
    write(f"end {number}")


@app.task(topic="feed", group="feed")
def wait_for_file(name: str) -> None:
    """Runs until somebody makes the file beside the audit."""
    write(f"start {name}")
    path = os.path.join(os.path.dirname(os.environ["TEST_AUDIT"]), name)
    while not os.path.exists(path):
        threading.Event().wait(0.01)
    write(f"end {name}")


@app.task(topic="feed", group="feed")
async def wait_for_file_async(name: str) -> None:
    write(f"start {name}")
    path = anyio.Path(os.environ["TEST_AUDIT"]).parent / name
    while not await path.exists():
        await anyio.lowlevel.checkpoint()
    write(f"end {name}")


@app.task(topic="feed", group="feed")
def fail(number: int) -> None:
    raise ValueError(f"not {number}")


@app.task(topic="feed", group="feed")
async def fail_async(number: int) -> None:
    raise ValueError(f"not {number}")


@app.task(topic="feed", group="feed")
def reject(number: int) -> None:
    raise Reject(f"not {number}")


@app.task(topic="feed", group="feed")
def exit_python(number: int) -> None:
    raise SystemExit(number)


@app.task(topic="feed", group="feed")
def tell_current() -> None:
    write(f"{current.task.name} {current.group} {current.topic} {current.id} {current.headers}")


@app.task(topic="feed", group="feed")
def store(text: str) -> None:
    pass


@app.task(topic="feed", group="feed")
def store_and_fail(text: str) -> None:
    raise ValueError(text)


@app.task(topic="slow", group="feed", rate_limit="1/m")
def store_slowly(text: str) -> None:
    pass


@app.task(topic="feed", group="search")
def index(number: int) -> None:
    write(f"index {number}")


posted = app.event("posted", topic="posts")


@posted.subscribe(group="feed")
def on_posted_feed(number: int) -> None:
    write(f"feed {number}")


@posted.subscribe(group="feed")
async def on_posted_feed_too(number: int) -> None:
    write(f"feed too {number}")


@posted.subscribe(group="search")
def on_posted_search(number: int) -> None:
    write(f"search {number}")


torn = app.event("torn", topic="posts")


@torn.subscribe(group="feed")
def on_torn_fails(number: int) -> None:
    raise ValueError(f"not {number}")


@torn.subscribe(group="feed")
def on_torn(number: int) -> None:
    write(f"whole {number}")
