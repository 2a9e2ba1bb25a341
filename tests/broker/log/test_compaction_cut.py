"""Compaction cut short at every file operation, and made to fail at every one: the log is whole, and goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskq.broker.log import names
from taskq.broker.log.batch import ProducerStamp, encode_many
from taskq.broker.log.compaction import compact
from taskq.broker.log.files import RealFiles
from taskq.broker.log.idempotence import IdempotentAppender
from taskq.broker.log.partition import Partition
from taskq.broker.log.rewriting import Pace, Stopped
from taskq.broker.port import Message, Record
from taskq.errors import StorageError, StorageFull
from tests.broker.log.conftest import NOW_MS, OpenPartition, verify
from tests.broker.log.test_compaction import EAGER, FILES, SEGMENT_BYTES, bases, churn, last_of, put, run, snapshot
from tests.broker.log.test_partition import read_all


class Cut(BaseException):
    """The process is gone."""


class Faulty(RealFiles):
    """Of the calls that change something, the n-th is the last: it and all after it do nothing, or fail."""

    def __init__(self, at: int, error: type[BaseException] | None = Cut, code: int = 5) -> None:
        super().__init__()
        self.left = at
        self.error, self.code = error, code
        self.partly = False

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0 or (self.left < 0 and self.error is Cut):
            raise Cut if self.error is Cut else OSError(self.code, os.strerror(self.code))

    def pwrite(self, fd: int, data: bytes, position: int, /) -> int:  # type: ignore[override]
        if self.left == 1 and self.error is Cut:
            os.pwrite(fd, data[: len(data) // 2], position)  # torn
        self._count()
        return os.pwrite(fd, data, position)

    def truncate(self, fd: int, size: int, /) -> None:
        self._count()
        os.ftruncate(fd, size)

    def sync(self, fd: int, /) -> None:  # type: ignore[override]
        self._count()

    def sync_directory(self, path: str) -> None:
        self._count()

    def rename(self, old: str, new: str, /) -> None:  # type: ignore[override]
        self._count()
        os.rename(old, new)

    def unlink(self, path: str, /) -> None:  # type: ignore[override]
        self._count()
        os.unlink(path)

    def open(self, path: str, *, create: bool = False, write: bool = True) -> int:
        if create:
            self._count()
        return super().open(path, create=create, write=write)


def fill(partition: Partition) -> None:
    appends = IdempotentAppender(FILES, partition, lambda: NOW_MS)
    for number in range(6):
        put(partition, *((b"k%d" % key, b"%d" % number * 30) for key in range(3)))
        appends.append(encode_many([Message(b"p%d" % number, b"p")], NOW_MS, ProducerStamp(1, 0, number)))
    put(partition, (b"k0", None))
    partition.roll()
    appends.close()


def outcomes(
    tmp_path: Path, make: Callable[[int], Faulty], catches: type[BaseException] | tuple[type[BaseException], ...]
) -> Iterator[tuple[Path, Callable[[], Partition]]]:
    """Directories of compactions that ended at the 1st, 2nd... operation, until one is not cut short."""
    at = 0
    while True:
        at += 1
        directory = tmp_path / str(at)
        directory.mkdir()

        def open_one(files: RealFiles = FILES, directory: Path = directory) -> Partition:
            return Partition(
                files, str(directory), "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=SEGMENT_BYTES
            )

        partition = open_one()
        fill(partition)
        files = make(at)
        try:
            run(partition, NOW_MS + 9999, files)
        except catches:
            yield directory, open_one
            partition.close()
        else:
            partition.close()
            assert at > 40
            assert files.left >= 0
            return


def check_after_cut(directory: Path, open_one: Callable[[], Partition], whole: list[Record]) -> None:
    partition = open_one()
    verify(directory, partition.end())
    found = read_all(partition)
    final = {key: record for key, record in last_of(whole).items() if record.value is not None}
    assert [record for record in found if record in whole] == found
    assert {key: record for key, record in last_of(found).items() if record.value is not None} == final
    for offset in range(0, 26, 5):
        assert read_all(partition, offset) == [record for record in found if record.offset >= offset]
    appends = IdempotentAppender(FILES, partition, lambda: NOW_MS)
    again = encode_many([Message(b"p3", b"p")], NOW_MS, ProducerStamp(1, 0, 3))
    assert appends.append(again) == 15
    appends.close()
    run(partition, NOW_MS + 9999)
    assert read_all(partition) == sorted(final.values())
    assert bases(directory) == [0, 25]
    left = [name for name in snapshot(directory) if "tmp" in name or name == "merging"]
    assert all(names.is_temporary(name) for name in left), "the cleaner removes these when they are old"
    verify(directory, partition.end())
    partition.close()


def whole_log(tmp_path: Path) -> list[Record]:
    tmp_path.mkdir()
    partition = Partition(FILES, str(tmp_path), "feed/0", lambda bits: None, lambda end: ())
    fill(partition)
    whole = read_all(partition)
    partition.close()
    return whole


def test_cut_short_at_any_operation_it_leaves_a_log_that_is_whole(tmp_path: Path) -> None:
    whole = whole_log(tmp_path / "whole")
    for directory, open_one in outcomes(tmp_path, Faulty, Cut):
        check_after_cut(directory, open_one, whole)


def test_cut_short_and_recovered_the_log_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot, when nothing is appended to the segment that was begun last, recovery gives up that one."""
    whole = whole_log(tmp_path / "whole")
    for number, (directory, open_one) in enumerate(outcomes(tmp_path, Faulty, Cut)):
        if number % 3 == 0:
            (directory / "checkpoint").unlink()
        monkeypatch.setattr(RealFiles, "boot_id", lambda self, boot=number: (9, boot))
        recovered = open_one()
        put(recovered, (b"after", b"a reboot"))
        put(recovered, (b"after", b"a reboot" * 70))
        found = read_all(recovered)
        assert last_of(found)[b"after"].offset == 26
        run(recovered, NOW_MS + 9999)
        found = read_all(recovered)
        values = {key: record for key, record in last_of(found).items() if record.value is not None}
        assert values == {**{k: r for k, r in last_of(whole).items() if r.value is not None}, b"after": found[-1]}
        verify(directory, 27)
        recovered.close()


def test_an_operation_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A full disk and a bad one in turn."""
    whole = whole_log(tmp_path / "whole")

    def make(at: int) -> Faulty:
        return Faulty(at, OSError, errno.ENOSPC if at % 2 else errno.EIO)

    for number, (directory, open_one) in enumerate(outcomes(tmp_path, make, (StorageFull, StorageError))):
        if number % 2 or number < 20:
            check_after_cut(directory, open_one, whole)


def test_told_to_stop_it_leaves_a_log_that_compacts_later(open_partition: OpenPartition, tmp_path: Path) -> None:
    partition = open_partition(segment_bytes_max=SEGMENT_BYTES)
    churn(partition)
    before = read_all(partition)
    last = list(last_of(before).values())
    asked = cut = 0
    while True:
        patience = iter(range(asked))
        report = compact(FILES, partition, EAGER, NOW_MS, lambda _: next(patience, None) is None)  # noqa: B023
        left = read_all(partition)
        assert [record for record in left if record in last] == last
        assert not list(tmp_path.glob("*.tmp"))
        verify(tmp_path, 60)
        if not report.is_cut_short:
            break
        assert report.cleaned == 0
        if not asked:
            assert left == before, "it left at once"
        asked, cut = asked + 1, cut + 1
    assert cut > 10, "it is asked at every segment"
    assert left == last
    assert report.cleaned == 60


def test_it_rests_after_each_mib_no_longer_than_that_took() -> None:
    rests: list[float] = []
    times = iter([0.0, 0.004, 1.0, 5.0, 6.0])

    def rest(seconds: float) -> bool:
        rests.append(seconds)
        return len(rests) == 4

    pace = Pace(rest, lambda: next(times))
    pace.worked(1 << 19)
    pace.worked(1 << 19)
    pace.worked(1 << 20)
    with pytest.raises(Stopped):
        pace.worked(10)
    assert rests == [0.0, 0.004, 0.01, 0.0]
