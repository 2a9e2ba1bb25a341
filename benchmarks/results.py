"""What a run has found, and the one way to look at it: medians over repetitions."""

from __future__ import annotations

from statistics import median

from attrs import define, field, frozen

from benchmarks.measures import Numbers
from benchmarks.peer import Peer


@frozen
class Description:
    """A peer in a reader's words: what is kept of `Peer` with its results."""

    title: str
    settings: str
    durability: str
    on_redis: bool

    @staticmethod
    def of(peer: Peer) -> Description:
        return Description(peer.title, peer.settings, peer.durability, peer.needs_redis)


@define
class Results:
    """Runs by measure and peer, in the order they came; failures likewise; peers that were skipped, with the reason."""

    machine: dict[str, str]
    peers: dict[str, Description]
    skipped: dict[str, str] = field(factory=dict)
    runs: dict[str, dict[str, list[Numbers]]] = field(factory=dict)
    failures: dict[str, dict[str, list[str]]] = field(factory=dict)

    def add(self, measure: str, peer: str, outcome: Numbers | str) -> None:
        if isinstance(outcome, str):
            self.failures.setdefault(measure, {}).setdefault(peer, []).append(outcome)
        else:
            self.runs.setdefault(measure, {}).setdefault(peer, []).append(outcome)

    def median(self, measure: str, peer: str, number: str) -> float | None:
        """The median over the repetitions, or None if the peer has no such number."""
        values = [run[number] for run in self.runs.get(measure, {}).get(peer, []) if number in run]
        return median(values) if values else None

    def best_peer(self, measure: str, number: str, *, on_redis: bool | None = None) -> float | None:
        """The highest median of the others (of those on Redis only, if asked)."""
        names = [
            name
            for name, peer in self.peers.items()
            if name != "taskq" and (on_redis is None or peer.on_redis == on_redis)
        ]
        return max((value for name in names if (value := self.median(measure, name, number)) is not None), default=None)
