"""Tasks that kill the process they run in, and one that does not."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from taskq import TaskQ
from tests.apps.lines import write

app = TaskQ("poison")


def die(how: str) -> None:
    write(f"poison {how}")
    if how == "exit":
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(topic="feed", group="feed")
def note(number: int) -> None:
    write(str(number))


@app.task(topic="feed", group="feed")
async def note_async(number: int) -> None:
    write(str(number))


@app.task(topic="feed", group="feed", max_deliveries=2)
def poison_2(how: str) -> None:
    die(how)


@app.task(topic="feed", group="feed")
def poison_3(how: str) -> None:
    die(how)


@app.task(topic="feed", group="feed")
async def poison_3_async(how: str) -> None:
    die(how)


@app.task(topic="feed", group="feed", max_deliveries=5)
def poison_5(how: str) -> None:
    die(how)


@app.task(topic="feed", group="feed", order="key", key=lambda number: "same")
def poison_in_order(number: int) -> None:
    if number == 4:
        die("kill")
    write(f"{number}")


@app.task(topic="feed", group="feed", max_deliveries=5, at_most_once=True)
def poison_once(how: str) -> None:
    die(how)


@app.task(topic="feed", group="feed")
def wait() -> None:
    """Runs until somebody makes the file "go" beside the audit."""
    write("waits")
    while not Path(os.environ["TEST_AUDIT"]).with_name("go").exists():
        time.sleep(0.01)
    write("goes")


happened = app.event("happened", topic="feed")


@happened.subscribe(group="feed")
def on_happened(how: str) -> None:
    write("heard")


@happened.subscribe(group="feed")
def on_happened_dies(how: str) -> None:
    die(how)
