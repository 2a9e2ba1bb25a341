"""Which topics there must be: created, deleted, made anew under the same name, and those of which nobody was told."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from taskq.broker.port import TopicPartition
from tests.simulation.files import PowerCut
from tests.simulation.model import PartitionModel, Wrong
from tests.simulation.process import Process

NAMES = ("topic0", "topic1")


def forget(topic: str, processes: Sequence[Process]) -> None:
    for process in processes:
        process.forget(topic)


@define
class _Ghost:
    """A topic whose deleter died: nobody sees it, and yet it may be back after a power cut, as it was."""

    id: str
    count: int
    partitions: dict[TopicPartition, PartitionModel]


@define
class Topics:
    """See the module docstring. `partitions` are those of the topics there are."""

    counts: dict[str, int] = field(factory=dict)
    partitions: dict[TopicPartition, PartitionModel] = field(factory=dict)
    _ids: dict[str, str] = field(factory=dict)
    _maybe: dict[str, int] = field(factory=dict)
    """Those whose creation did not return, with their numbers of partitions."""
    _going: set[str] = field(factory=set)
    """Those that were being deleted when the power went."""
    _ghosts: dict[str, _Ghost] = field(factory=dict)

    @property
    def free(self) -> str | None:
        """A name that no topic has."""
        return next((name for name in NAMES if name not in self.counts), None)

    def find(self, tp: TopicPartition) -> PartitionModel | None:
        """That of a topic that there is, or may be again after a power cut. None: its topic is deleted for good."""
        ghost = self._ghosts.get(tp.topic)
        return self.partitions.get(tp) or (ghost.partitions.get(tp) if ghost else None)

    def create(self, process: Process, name: str, count: int) -> None:
        count = self._maybe.setdefault(name, count)
        process.directory.create(name, count, exist_ok=True)  # it may be there, if its creator died
        self._created(process, name)

    def _created(self, process: Process, name: str) -> None:
        self.counts[name] = self._maybe.pop(name)
        self._ids[name] = process.directory.get(name).id
        self._ghosts.pop(name, None)
        for number in range(self.counts[name]):
            self.partitions[TopicPartition(name, number)] = PartitionModel()

    def delete(self, process: Process, name: str, others: Sequence[Process]) -> None:
        """Delete it, and have all processes hear of it."""
        self._going.add(name)
        try:
            process.directory.catalogue.delete(name)
        except PowerCut:
            raise
        except BaseException:
            self._going.discard(name)
            if process.directory.catalogue.stamp(name) is None:
                self._ghosts[name] = self._gone(name)
                forget(name, others)
            raise
        self._gone(name)
        forget(name, others)

    def _gone(self, name: str) -> _Ghost:
        count = self.counts.pop(name)
        models = {tp: self.partitions.pop(tp) for tp in list(self.partitions) if tp.topic == name}
        self._going.discard(name)
        return _Ghost(self._ids.pop(name), count, models)

    def check(self, process: Process) -> None:
        """After a power cut. Raises Wrong unless those are there that must be."""
        found = set(process.directory.topics())
        for name in sorted(self._going - found):
            self._gone(name)
        self._going.clear()
        for name in sorted(found - self.counts.keys()):
            ghost = self._ghosts.get(name)
            if ghost is not None and process.directory.get(name).id == ghost.id:
                self.counts[name], self._ids[name] = ghost.count, ghost.id
                self.partitions |= ghost.partitions
            elif name in self._maybe:
                self._created(process, name)
        self._ghosts.clear()
        if found != self.counts.keys():
            raise Wrong(f"there are the topics {sorted(found)}; {sorted(self.counts)} had been created")
        for name, count in self.counts.items():
            topic = process.directory.get(name)
            if (topic.id, topic.partitions) != (self._ids[name], count):
                raise Wrong(f"{name} is another one, or has not {count} partitions but {topic.partitions}")
