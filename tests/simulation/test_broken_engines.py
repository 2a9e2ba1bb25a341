"""The harness finds what it is there to find: the engine is broken in one place, and some seed must say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from taskq.broker.log import retention
from taskq.broker.log.catalogue import Catalogue
from taskq.broker.log.directory import DataDirectory
from taskq.broker.log.durability import Syncer
from taskq.broker.log.head import GENERATION, MAGIC, NOTICE, RECOVERIES, SYNCED, Head, HeadState, Notice
from taskq.broker.log.partition import Partition
from taskq.broker.log.segment import ActiveSegment
from taskq.errors import CorruptLog
from tests.simulation.counts import Counts
from tests.simulation.files import SimFiles
from tests.simulation.model import Wrong
from tests.simulation.run import run

HISTORIES_MAX = 1500
Breaks = Callable[[pytest.MonkeyPatch], None]


def without_directory_syncs(call: Any) -> Any:
    """`call`, a method of what has files, with no directory being synced while it runs."""

    def broken(self: Any, *arguments: Any) -> Any:
        files = self._files if hasattr(self, "_files") else self.files
        files.sync_directory = lambda path: None
        try:
            return call(self, *arguments)
        finally:
            del files.sync_directory

    return broken


def no_crc_in_recovery(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("taskq.broker.log.scan.check_crc", lambda buffer, position, header: None)


def a_head_that_is_trusted_after_a_reboot(patch: pytest.MonkeyPatch) -> None:
    def is_valid(self: Head) -> bool:
        return self.words[0] == MAGIC and self._slot(self.words[GENERATION]) is not None

    patch.setattr(Head, "is_valid", is_valid)


def a_roll_without_a_sync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "_roll", without_directory_syncs(Partition._roll))


def a_roll_without_a_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Partition, "_sync_log", lambda self, segment: None)


def a_checkpoint_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    checkpoint, sync = Partition._checkpoint, Syncer.sync

    def broken(self: Partition, segment: ActiveSegment) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Syncer, "sync", lambda self, segment, wanted: None)
            checkpoint(self, segment)
        sync(self._syncer, lambda: segment, self._appended)

    patch.setattr(Partition, "_checkpoint", broken)


def a_sync_that_does_not_look_at_what_is_synced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Syncer, "is_durable", lambda self, end: True)


def a_sync_that_is_said_to_be_done_before_it_is(patch: pytest.MonkeyPatch) -> None:
    sync = Syncer._sync

    def broken(self: Syncer, segment: ActiveSegment) -> None:
        self._head.words[SYNCED] = self._head.state().next_offset
        sync(self, segment)

    patch.setattr(Syncer, "_sync", broken)


def a_topic_without_a_sync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Catalogue, "_create", without_directory_syncs(Catalogue._create))
    patch.setattr(DataDirectory, "_recovered", without_directory_syncs(DataDirectory._recovered))


def a_deletion_without_a_sync_of_what_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Catalogue, "_forget_progress", without_directory_syncs(Catalogue._forget_progress))


def a_new_log_without_a_sync_of_its_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Syncer, "sync_name", lambda self: None)


def commits_that_outlive_their_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("taskq.broker.log.offsets.forget_beyond", lambda *arguments: [])


def commits_that_are_never_synced(patch: pytest.MonkeyPatch) -> None:
    sync = SimFiles.sync

    def broken(self: SimFiles, fd: int, /) -> None:
        if "/groups/" not in self._open[fd][0]:
            sync(self, fd)

    patch.setattr(SimFiles, "sync", broken)


def a_failed_fsync_that_is_tried_again(patch: pytest.MonkeyPatch) -> None:
    def broken(files: SimFiles, directory: str, name: str, head: Head) -> None:
        state: HeadState = head.state()
        head.words[NOTICE] &= ~Notice.FAILED
        head.words[RECOVERIES] += 1
        head.republish(state)

    patch.setattr("taskq.broker.log.opening._repair", broken)


def retention_without_a_sync_of_the_directory(patch: pytest.MonkeyPatch) -> None:
    clean = retention.clean

    def broken(files: Any, *arguments: Any) -> list[retention.Segment]:
        files.sync_directory = lambda path: None
        try:
            return clean(files, *arguments)
        finally:
            del files.sync_directory

    patch.setattr(retention, "clean", broken)


def checkpoints_that_are_never_found(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("taskq.broker.log.checkpoint.read", lambda files, directory: None)


BROKEN: list[Breaks] = [
    no_crc_in_recovery,
    a_head_that_is_trusted_after_a_reboot,
    a_roll_without_a_sync_of_the_directory,
    a_roll_without_a_sync,
    a_checkpoint_before_the_sync,
    a_sync_that_does_not_look_at_what_is_synced,
    a_sync_that_is_said_to_be_done_before_it_is,
    a_topic_without_a_sync_of_the_directory,
    a_deletion_without_a_sync_of_what_is_forgotten,
    a_new_log_without_a_sync_of_its_name,
    commits_that_outlive_their_records,
    commits_that_are_never_synced,
    a_failed_fsync_that_is_tried_again,
    retention_without_a_sync_of_the_directory,
]


def histories_until_found(histories_max: int) -> int | None:
    counts = Counts()
    for seed in range(histories_max):
        error = run(seed, counts)
        if error is not None:
            assert isinstance(error, Wrong | CorruptLog), f"seed {seed}: {error!r} says nothing of what is broken"
            return counts.histories
    return None


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_broken_engine_is_found(monkeypatch: pytest.MonkeyPatch, breaks: Breaks) -> None:
    breaks(monkeypatch)
    found = histories_until_found(HISTORIES_MAX)
    assert found is not None
    print(f"{breaks.__name__}: found by history {found}")


def test_what_only_costs_time_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints_that_are_never_found(monkeypatch)
    assert histories_until_found(60) is None
