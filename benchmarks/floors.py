"""What publishing and running an invocation would cost with nothing around it: taskq is measured against these.

`python -m benchmarks.floors DIRECTORY COUNT` prints JSON, in us per invocation, each the best of five rounds.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import uuid
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import msgspec

from benchmarks import work

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
        }
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
