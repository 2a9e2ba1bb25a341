"""Tasks that leave something running in the worker."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import anyio.to_thread

from taskq import TaskQ
from tests.apps.lines import write

app = TaskQ("lingering")
LONG_S = 600
_pools: list[ThreadPoolExecutor] = []


@app.task(topic="feed", group="feed")
def a_thread() -> None:
    threading.Thread(target=time.sleep, args=(LONG_S,), daemon=False).start()
    write("left")


@app.task(topic="feed", group="feed")
def a_pool() -> None:
    _pools.append(ThreadPoolExecutor(1))
    _pools[-1].submit(time.sleep, LONG_S)
    write("left")


@app.task(topic="feed", group="feed", timeout=0.2)
async def a_thread_of_the_loop() -> None:
    write("left")
    await asyncio.to_thread(time.sleep, LONG_S)


@app.task(topic="feed", group="feed")
async def a_thread_that_cant_be_cancelled() -> None:
    write("left")
    await anyio.to_thread.run_sync(time.sleep, LONG_S)
