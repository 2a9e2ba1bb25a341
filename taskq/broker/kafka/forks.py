"""Clients of librdkafka don't survive a fork: a child has none of their threads. It begins anew with its own."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """What has clients or locks."""

    def begin_anew(self) -> None:
        """In the child: make new locks, since another thread may have held the old ones; and forget clients, without
        closing them: to close one waits for threads that are not there."""
        ...


_there: WeakSet[Forkable] = WeakSet()
_left: list[object] = []
"""The parent's clients: never collected, for the same reason."""


def watch(one: Forkable) -> None:
    """Have it begin anew in forked children."""
    _there.add(one)


def leave(client: object) -> None:
    """Keep a parent's client from being closed."""
    _left.append(client)


def _begin_anew() -> None:
    for one in list(_there):
        one.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)
