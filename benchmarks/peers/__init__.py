"""The peers, one module each: it defines `PEER`. To add one, add a module and its name here.

Those on Kafka are named in `benchmarks.kafka`.
"""

from __future__ import annotations

import importlib

from benchmarks.peer import Peer

NAMES = ("taskq", "celery", "dramatiq", "taskiq", "huey", "huey_sqlite")


def load(name: str) -> Peer:
    """Import a peer's module. Raises ImportError when its packages are missing."""
    peer = importlib.import_module(f"benchmarks.peers.{name}_").PEER
    assert isinstance(peer, Peer)
    return peer
