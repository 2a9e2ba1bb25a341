"""The first lines of a worker: who it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from taskq.cli.logs import say

if TYPE_CHECKING:
    from taskq.worker import WorkerDescription

CHARACTERS_MAX = 100
"""How long a list of names may be before only the first are named."""


def introduce(lines: Sequence[tuple[str, str]], metrics: str) -> None:
    """Print them: a line of what it is, and the others under it, with their headings aligned."""
    (name, what), *rest = lines
    told = [f"{name}, {what}"] + [f"  {heading:<12} {text}" for heading, text in [*rest, ("metrics", metrics)]]
    say("\n".join(told))


def lines_of(worker: WorkerDescription) -> list[tuple[str, str]]:
    """What is to be said of a worker."""
    return [
        (f"taskq {worker.version}", f"group {worker.group}"),
        ("broker", worker.broker),
        ("tasks", shortened(worker.tasks)),
        ("topics", shortened([f"{name} ({count} partitions)" for name, count in worker.topics])),
        ("concurrency", f"{worker.concurrency}, on {worker.backend}"),
    ]


def shortened(names: Sequence[str]) -> str:
    """The names, or the first of them and how many there are if they are too many for a line; at least one."""
    ends = accumulate(len(name) + 2 for name in names)
    shown = max(1, sum(end - 2 <= CHARACTERS_MAX for end in ends))
    more = f" and {len(names) - shown} more" if shown < len(names) else ""
    return ", ".join(names[:shown]) + more
