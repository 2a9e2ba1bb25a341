"""What the harness asks of a peer: how to publish with it and how to start its worker. One module each in `peers/`.

A peer's module makes its app when it is imported, from the environment that `runs.py` sets for the process:
`BENCH_DIR` (a fresh directory), `BENCH_REDIS` (URL of a fresh server, for those that need one), `BENCH_BOARD`, and
`BENCH_KAFKA` for those on Kafka (`kafka.py`): its HOST:PORT.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from random import Random
from time import perf_counter_ns, sleep

import anyio
from attrs import field, frozen

Command = list[str]

SLEEP_S = 0.010
"""How long the I/O-bound tasks wait."""


@frozen
class PublishPlan:
    """What one publisher process shall do.

    Attributes: `task`; `count` messages with the indices 0 to count - 1, the first being the unmeasured warm-up;
    `seconds` after which it stops early; `pause_s` the range of the pause before each message (0, 0: none);
    `ready`, called after the warm-up message, returns when measuring may begin.
    """

    task: str
    count: int
    seconds: float
    pause_s: tuple[float, float] = (0.0, 0.0)
    ready: Callable[[], None] = field(default=lambda: None)

    def pauses(self) -> Iterable[float]:
        random = Random(self.count)
        return (random.uniform(*self.pause_s) for _ in range(1, self.count))


@frozen
class Published:
    """When each message's publishing began and ended, in CLOCK_MONOTONIC ns, without the warm-up message.

    Without pauses one message begins when the one before has ended: the clock is read once per message.
    """

    began: list[int]
    ended: list[int]


def publish_each(send: Callable[[int], object], plan: PublishPlan) -> Published:
    """Publish one by one with a synchronous call."""
    send(0)
    plan.ready()
    if plan.pause_s[1]:
        return _publish_paced(send, plan)
    now = perf_counter_ns
    times = [now()]
    add = times.append
    deadline = times[0] + int(plan.seconds * 1e9)
    for index in range(1, plan.count):
        send(index)
        add(now())
        if times[-1] > deadline:
            break
    return Published(times[:-1], times[1:])


def _publish_paced(send: Callable[[int], object], plan: PublishPlan) -> Published:
    began, ended = [], []
    for index, pause in enumerate(plan.pauses(), 1):
        sleep(pause)
        began.append(perf_counter_ns())
        send(index)
        ended.append(perf_counter_ns())
    return Published(began, ended)


async def publish_each_async(send: Callable[[int], Awaitable[object]], plan: PublishPlan) -> Published:
    """Publish one by one with an async call, for peers whose own way of publishing it is."""
    await send(0)
    plan.ready()
    began, ended = [], []
    deadline = perf_counter_ns() + int(plan.seconds * 1e9)
    for index, pause in enumerate(plan.pauses(), 1):
        if pause:
            await anyio.sleep(pause)
        began.append(perf_counter_ns())
        await send(index)
        ended.append(perf_counter_ns())
        if ended[-1] > deadline:
            break
    return Published(began, ended)


@frozen
class WorkerPlan:
    """The worker to start: `processes` that run tasks, each with `concurrency` at a time."""

    task: str
    processes: int
    concurrency: int


@frozen
class Peer:
    """A peer as the harness sees it.

    Attributes: `title` for tables; `packages` whose versions are told; `settings` and `durability` in a reader's words;
    `messages` for a drain that takes a second or more; `concurrency` at which its no-op drain is fastest;
    `publish`; `publish_many` (task, count) if it has a bulk call; `worker` gives the command lines to start.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    settings: str
    durability: str
    messages: int
    concurrency: int
    publish: Callable[[PublishPlan], Published]
    worker: Callable[[WorkerPlan], list[Command]]
    tasks: frozenset[str]
    needs_redis: bool = True
    publish_many: Callable[[str, int], None] | None = None
    sender: Callable[[str], AbstractContextManager[Callable[[int], object]]] | None = None
    """For a task: publishes one by its index, from any number of threads."""
