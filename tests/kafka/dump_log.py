"""What `kafka-dump-log` says of segment files."""

from __future__ import annotations

import re
from pathlib import Path

from attrs import frozen

from tests.kafka import tools
from tests.kafka.jars import Jars


@frozen
class DumpLogSegments:
    """`kafka-dump-log`."""

    jars: Jars

    def run(self, *options: str, files: list[Path]) -> str:
        """What it prints of these files, standard error included."""
        return tools.run(self.jars, "kafka-dump-log", *options, "--files", ",".join(map(str, files)))


@frozen
class KafkaBatch:
    """A batch as Kafka's tool prints it."""

    base_offset: int
    last_offset: int
    count: int
    is_valid: bool
    create_time_ms: int


_BATCH = re.compile(
    r"^baseOffset: (\d+) lastOffset: (\d+) count: (\d+) .* CreateTime: (-?\d+) .* isvalid: (true|false)$", re.MULTILINE
)


def batches(printed: str) -> list[KafkaBatch]:
    """The batches in what `DumpLogSegments.run` returned."""
    return [
        KafkaBatch(int(base), int(last), int(count), valid == "true", int(time))
        for base, last, count, time, valid in _BATCH.findall(printed)
    ]
