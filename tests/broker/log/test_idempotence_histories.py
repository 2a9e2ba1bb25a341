"""Any history of producers, processes and reboots, against a list."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskq.broker.log.files import RealFiles
from taskq.broker.log.idempotence import IdempotentAppender
from taskq.broker.log.partition import Partition
from taskq.broker.log.producers import OutOfOrderSequence
from tests.broker.log.test_idempotence import appender, sent
from tests.broker.log.test_partition import read_all, values


class History:
    """Three producers, two processes that take turns, retries at any time; and the list that the log should be."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.boot = 0
        self.model: list[bytes] = []
        self.batches: list[list[tuple[bytes, int]]] = [[], [], []]
        self.epochs, self.sequences = [0, 0, 0], [0, 0, 0]
        self.processes = [self.open(), self.open()]

    def open(self) -> tuple[Partition, IdempotentAppender]:
        history = self

        class Files(RealFiles):
            def boot_id(self) -> tuple[int, int]:
                return history.boot, 0

        partition = Partition(
            Files(), str(self.directory), "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=600
        )
        return partition, appender(partition)

    def close(self, *numbers: int) -> None:
        for number in numbers:
            partition, appends = self.processes[number]
            appends.close()
            partition.close()

    def send(self, producer: int, count: int) -> None:
        texts = [b"%d-%d-%d" % (producer, len(self.model), part) for part in range(count + 1)]
        batch = sent(self.sequences[producer], *texts, producer=producer, epoch=self.epochs[producer])
        assert self.processes[0][1].append(batch) == len(self.model)
        self.batches[producer].append((batch, len(self.model)))
        self.sequences[producer] += len(texts)
        self.model += texts

    def again(self, producer: int, back: int) -> None:
        if back < len(self.batches[producer]):
            batch, offset = self.batches[producer][-1 - back]
            if back < 5:
                assert self.processes[0][1].append(batch) == offset
            else:
                with pytest.raises(OutOfOrderSequence):
                    self.processes[0][1].append(batch)

    def epoch(self, producer: int, _: int) -> None:
        self.epochs[producer] += bool(self.batches[producer])
        self.batches[producer], self.sequences[producer] = [], 0

    def sync(self, *_: int) -> None:
        self.processes[0][0].sync()

    def other(self, *_: int) -> None:
        self.processes.reverse()

    def reopen(self, *_: int) -> None:
        self.close(0)
        self.processes[0] = self.open()

    def reboot(self, *_: int) -> None:
        self.close(0, 1)
        self.boot += 1
        self.processes = [self.open(), self.open()]


steps = st.sampled_from(["send", "send", "again", "again", "epoch", "sync", "other", "reopen", "reboot"])


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(steps, st.integers(0, 2), st.integers(0, 6)), max_size=40))
def test_any_history_has_every_batch_once(tmp_path_factory: pytest.TempPathFactory, taken: list) -> None:
    history = History(tmp_path_factory.mktemp("partition"))
    for step, producer, number in taken:
        getattr(history, step)(producer, number)
    assert values(read_all(history.processes[0][0])) == history.model
    history.close(0, 1)
