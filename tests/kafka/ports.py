"""Ports that nobody else takes between choosing them and the moment a server listens, nor while it is down."""

from __future__ import annotations

import random
import socket

FIRST, LAST, BLOCK = 20_000, 30_000, 16
"""Below what systems give to those who ask for any port."""


class Ports:
    """A block of ports: whoever has bound the first of them owns the others. Freed by `close`, or with the process."""

    def __init__(self) -> None:
        blocks = list(range(FIRST, LAST, BLOCK))
        random.SystemRandom().shuffle(blocks)  # no seed: two runs with the same one must not choose alike
        for first in blocks:
            self._owned = socket.socket()
            try:
                self._owned.bind(("127.0.0.1", first))
            except OSError:
                self._owned.close()
                continue
            self.numbers = range(first + 1, first + BLOCK)
            if not any(is_taken(number) for number in self.numbers):
                return
            self._owned.close()
        raise OSError(f"no {BLOCK} ports beside each other are free between {FIRST} and {LAST}")

    def close(self) -> None:
        self._owned.close()


def is_taken(number: int) -> bool:
    """Whether something listens on a port of loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections don't matter
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return True
    return False
