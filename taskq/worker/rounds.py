"""What waits by priority, and is taken in rounds in which each priority has its weight, so that none starves. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

WEIGHTS: Mapping[str, int] = {"high": 6, "normal": 3, "low": 1}
"""How many are taken of each priority, in turn, where all have some."""

T = TypeVar("T")


class Rounds(Generic[T]):
    """Not `is_weighted`: there are no priorities, all is "normal" and comes out as it went in."""

    def __init__(self, *, is_weighted: bool) -> None:
        weights = WEIGHTS if is_weighted else {"normal": 1}
        self._waiting: dict[str, deque[T]] = {priority: deque() for priority in weights}
        self._turns = [priority for priority, weight in weights.items() for _ in range(weight)]
        self._turn = 0

    def __bool__(self) -> bool:
        return any(self._waiting.values())

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def add(self, one: T, priority: str) -> None:
        self._waiting[priority].append(one)

    def put_back(self, one: T, priority: str) -> None:
        """To be the next of its priority."""
        self._waiting[priority].appendleft(one)

    def take(self) -> T:
        """The next one. There must be one."""
        while True:
            waiting = self._waiting[self._turns[self._turn]]
            self._turn = (self._turn + 1) % len(self._turns)
            if waiting:
                return waiting.popleft()

    def remove(self, is_wanted: Callable[[T], bool]) -> list[T]:
        """Take these out, wherever they are."""
        removed: list[T] = []
        for priority, waiting in self._waiting.items():
            removed += [one for one in waiting if is_wanted(one)]
            self._waiting[priority] = deque(one for one in waiting if not is_wanted(one))
        return removed
