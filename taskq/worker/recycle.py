"""When a worker process has had enough, and is to be replaced with a new one: too much memory, too many invocations.

For tasks whose libraries leak. The process decides by itself, at the poller's tick: it drains, as long as it takes, so
that nothing is run twice for it, and ends with EXIT_RECYCLE; its supervisor starts another at once.

What it looks at is the process's own resident memory, not that of children it runs tasks in. On Linux that is what it
is now. Elsewhere `getrusage` tells only the most it has ever been: a short peak counts there, too.

A process that is over its limit before it has run anything would be replaced for ever, and nothing be run: that is a
ConfigError at the start; and none is replaced before it has run at least one.
"""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from random import random

from attrs import define, field

from taskq.errors import ConfigError
from taskq.metrics import Metrics

COUNTED = frozenset({"done", "retried", "dead"})
"""Outcomes of what was run, or given up."""

JITTER = 0.1
"""Each process's limit of invocations is lower by up to this part, so that those that began together don't end so."""

_STATM = Path("/proc/self/statm")


def rss_bytes() -> int:
    """How much memory this process has; where that can't be known, the most it ever had."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def executed(metrics: Metrics, group: str) -> int:
    """How many invocations of a group this process has run or given up."""
    return int(
        sum(value[0] for labels, value in metrics.executions.read() if labels[0] == group and labels[2] in COUNTED)
    )


@define(eq=False)
class Recycler:
    """Calls `recycle` once, with the reason, when a limit is reached. `tick` belongs to the poller's thread.

    Raises ConfigError if the process is over `rss_bytes_max` already.
    """

    rss_bytes_max: int | None
    invocations_max: int | None
    executed: Callable[[], int]
    recycle: Callable[[str], object]
    rss_bytes: Callable[[], int] = rss_bytes
    random: Callable[[], float] = random

    _before: int = field(init=False)
    _is_over: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._before = self.executed()
        if self.invocations_max is not None:
            self.invocations_max = math.ceil(self.invocations_max * (1 - JITTER * self.random()))
        if self.rss_bytes_max is not None and (rss := self.rss_bytes()) >= self.rss_bytes_max:
            raise ConfigError(
                f"max_rss of {_mib(self.rss_bytes_max)} is too low: the worker has {_mib(rss)} before it runs anything"
            )

    def tick(self, now: float) -> None:
        """Look whether it is time."""
        if not self._is_over and (why := self._why()):
            self._is_over = True
            self.recycle(why)

    def _why(self) -> str:
        count = self.executed() - self._before
        if self.invocations_max is not None and count >= self.invocations_max:
            return f"it has run {count} invocations"
        if self.rss_bytes_max is not None and count and (rss := self.rss_bytes()) >= self.rss_bytes_max:
            return f"it has {_mib(rss)} of memory after {count} invocations"
        return ""


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
