"""`python -m tests.crash.million`: six processes append a million records to one partition while two read them.

All are there, each writer's in its order, with no gap in the offsets; for both readers, and for one that comes later.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from functools import partial

from taskq.broker.port import TopicPartition
from tests.crash.family import Failed, family
from tests.crash.roles import Report
from tests.crash.workload import open_broker

_TP = TopicPartition("single", 0)
_SEGMENT_BYTES = 8 * 1024 * 1024
_REPORT_EVERY = 2000
_WAIT_S = 600.0


def append(report: Report, root: str, writer: int, count: int) -> None:
    """Publish `count` records one by one."""
    broker = open_broker(root, segment_bytes=_SEGMENT_BYTES)
    producer = broker.producer()
    last = -1
    for number in range(count):
        _, offset = producer.send(_TP.topic, b"%d %d" % (writer, number))
        if offset <= last:
            raise Failed(f"writer {writer} got offset {offset} after {last}")
        last = offset
        if not number % _REPORT_EVERY:
            report("alive")
    broker.close()


def follow(report: Report, root: str, counts: list[int]) -> None:
    """Read from the start until all is there. Each record must be the next of its writer."""
    broker = open_broker(root, segment_bytes=_SEGMENT_BYTES)
    broker.admin()
    reader, offset, total = broker.reader(), 0, sum(counts)
    due = [0] * len(counts)
    while offset < total:
        records = reader.read(_TP, offset)
        for record in records:
            assert record.value is not None
            writer, number = map(int, record.value.split())
            if record.offset != offset or number != due[writer]:
                raise Failed(f"offset {record.offset}: {record.value!r} where {offset} and {due[writer]} are due")
            due[writer] += 1
            offset += 1
        report("alive")
    if due != counts or reader.bounds(_TP).end != total:
        raise Failed(f"{due} of {counts} are there, up to offset {reader.bounds(_TP).end}")
    broker.close()


def run(records: int, writers: int, readers: int) -> float:
    """Returns seconds. Raises Failed."""
    counts = [records // writers + (number < records % writers) for number in range(writers)]
    root = tempfile.mkdtemp(prefix="taskq-million-")
    began = time.monotonic()
    try:
        with family() as processes:
            processes.wait(processes.start("the first", partial(_create, root=root)), _WAIT_S)
            roles = [partial(append, root=root, writer=number, count=count) for number, count in enumerate(counts)]
            roles += [partial(follow, root=root, counts=counts)] * readers
            for child in [processes.start(f"process {number}", role) for number, role in enumerate(roles)]:
                processes.wait(child, _WAIT_S)
            processes.wait(processes.start("the late reader", roles[-1]), _WAIT_S)
    finally:
        shutil.rmtree(root)
    return time.monotonic() - began


def _create(report: Report, root: str) -> None:
    open_broker(root).producer().send_many(_TP.topic, [])
    report("alive")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.million", description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--writers", type=int, default=6)
    parser.add_argument("--readers", type=int, default=2)
    asked = parser.parse_args()
    took_s = run(asked.records, asked.writers, asked.readers)
    print(
        f"{asked.writers} processes appended {asked.records:,} records to one partition and {asked.readers} read them "
        f"meanwhile, in {took_s:.0f} s: all there, in order per writer, no gaps in offsets"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
