"""After a fault: what was acknowledged is there, the log works, and nothing is left open."""

from __future__ import annotations

import os
from pathlib import Path

from taskq.broker.log.batch import check_crc, read_header
from taskq.broker.port import Reader, TopicPartition
from tests.faults.scenario import Scenario


def check(scenario: Scenario) -> None:
    """The fault is over. Raises AssertionError."""
    scenario.files.faults = ()
    scenario.close()
    scenario.publish()
    scenario.consume()
    reader = scenario.broker.reader()
    for tp, acknowledged in scenario.acknowledged.items():
        start = min(acknowledged) if tp.topic == "gap" else 0  # what was there before is gone, and to read it refused
        found = {offset: value for offset, (_, value) in read(reader, tp, start).items()}
        for at, value in acknowledged.items():
            assert found.get(at) == value, f"LOST: {tp}, offset {at}"
        ours = [value for value in found.values() if value != b"gone, maybe"]
        assert len(set(ours)) == len(ours), f"{tp}: something is there twice"
        assert set(ours) <= scenario.sent, f"{tp}: something is there that nobody sent"
        if tp.topic != "gap":
            assert_has_no_gaps(scenario, tp)
    for topic in ("keyed", "old"):
        kept = dict(read(reader, TopicPartition(topic, 0)).values())
        assert kept == {b"%d" % key: value for (name, key), value in scenario.last.items() if name == topic}
    described = scenario.broker.admin().describe_group("feed").committed
    assert described == scenario.committed
    scenario.close()


def read(reader: Reader, tp: TopicPartition, offset: int = 0) -> dict[int, tuple[bytes | None, bytes | None]]:
    """Keys and values from `offset` on."""
    found = {}
    while records := reader.read(tp, offset):
        offset = records[-1].offset + 1
        found.update({record.offset: (record.key, record.value) for record in records})
    return found


def assert_has_no_gaps(scenario: Scenario, tp: TopicPartition) -> None:
    due = 0
    for path in sorted(Path(scenario.directory(tp)).glob("*.log")):
        raw, position = path.read_bytes(), 0
        assert int(path.stem) == due, f"{path}: {due} is due"
        while position < len(raw):
            header = read_header(raw, position)
            check_crc(raw, position, header)
            assert header.base_offset == due, f"{path}, byte {position}"
            due, position = header.next_offset, position + header.size


def open_descriptors() -> int:
    return len(os.listdir("/dev/fd"))
