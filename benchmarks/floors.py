"""What publishing and running an invocation would cost with nothing around it: taskq is measured against these.

`python -m benchmarks.floors DIRECTORY COUNT` prints JSON, in us per invocation, each the best of five rounds. Two more
say what this machine and Python leave to any framework. `wake_us` is the median time from a write to a pipe until the
process that slept on it has read it, with the pauses of the latency measure. `sleep_async_share` is the share of ideal
that 200 bare coroutines reach which do nothing but sleep for 10 ms.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Coroutine
from time import perf_counter_ns
from typing import Any

import msgspec

from benchmarks import work
from benchmarks.peer import SLEEP_S

_ROUNDS = 5


def _pass(index: int) -> None:
    """What `work.noop` would be without its mark."""


def _best_us(call: Callable[[int], object], count: int) -> float:
    rounds = []
    for _ in range(_ROUNDS):
        began = perf_counter_ns()
        for index in range(count):
            call(index)
        rounds.append((perf_counter_ns() - began) / count / 1e3)
    return min(rounds)


def measure(directory: str, count: int) -> dict[str, float]:
    encode = msgspec.msgpack.Encoder().encode
    decode = msgspec.msgpack.Decoder().decode
    invocation: dict[str, Any] = {"task": "noop", "id": uuid.uuid4().bytes, "args": [1]}
    value = encode(invocation)
    flock, write, exclusive, unlock = fcntl.flock, os.write, fcntl.LOCK_EX, fcntl.LOCK_UN
    noop = work.noop
    descriptor = os.open(os.path.join(directory, "floor"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def publish(index: int) -> None:
        invocation["args"] = [index]
        flock(descriptor, exclusive)
        write(descriptor, encode(invocation))
        flock(descriptor, unlock)

    def run(_index: int) -> None:
        noop(*decode(value)["args"])

    try:
        return {
            "publish_us": _best_us(publish, count),
            "drain_us": _best_us(run, count),
            "mark_us": _best_us(noop, count) - _best_us(_pass, count),
            "wake_us": _wake_us(),
            "sleep_async_share": _on_workers_loop(_sleep_share()),
        }
    finally:
        os.close(descriptor)


def _wake_us(samples: int = 200) -> float:
    reading, writing = os.pipe()
    back_reading, back_writing = os.pipe()
    child = os.fork()
    if child == 0:
        taken = []
        for _ in range(samples):
            sent = int.from_bytes(os.read(reading, 8), "little")
            taken.append(perf_counter_ns() - sent)
        os.write(back_writing, json.dumps(sorted(taken)[samples // 2] / 1e3).encode())
        os._exit(0)
    for _ in range(samples):
        time.sleep(random.uniform(0.005, 0.02))
        os.write(writing, perf_counter_ns().to_bytes(8, "little"))
    median = float(os.read(back_reading, 100))
    os.waitpid(child, 0)
    return median


def _on_workers_loop(coroutine: Coroutine[Any, Any, float]) -> float:
    """uvloop if it is there, as in a worker."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(coroutine)
    return float(uvloop.run(coroutine))


async def _sleep_share(coroutines: int = 200, seconds: float = 2.0) -> float:
    done = 0
    end = time.perf_counter() + seconds

    async def sleep() -> None:
        nonlocal done
        while time.perf_counter() < end:
            await asyncio.sleep(SLEEP_S)
            done += 1

    await asyncio.gather(*[sleep() for _ in range(coroutines)])
    return done / (coroutines * seconds / SLEEP_S)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
