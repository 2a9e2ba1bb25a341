"""How many invocations the workers have not finished, as the broker knows it: no worker is asked, none need run."""

from __future__ import annotations

from taskq.broker.port import Broker
from taskq.exporter import PartitionBacklog, describe_group, partition_backlogs

TOPIC = GROUP = "feed"


class Backlog:
    """Looks at the group's partitions through one broker. Thread-safe."""

    def __init__(self, broker: Broker) -> None:
        self._admin = broker.admin()
        self._reader = broker.reader()

    def read(self) -> int:
        """How many invocations are not finished."""
        return sum(partition.backlog for partition in self._partitions())

    def workers(self) -> int:
        """How many workers share the partitions; 0 while any partition is nobody's."""
        owners = {partition.owner for partition in self._partitions()}
        return 0 if None in owners else len(owners)

    def _partitions(self) -> list[PartitionBacklog]:
        return partition_backlogs(self._admin, self._reader, describe_group(self._admin, GROUP), [TOPIC])
