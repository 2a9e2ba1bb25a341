"""A partition whose files have come to harm: it opens, or says why not, and serves nothing that was not written."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from taskq.broker.log.batch import encode_many, encode_one
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.port import Lost, Message, Record
from taskq.errors import BrokerError, CorruptLog
from tests.fuzz.mutations import NOW_MS, harmed

_NEW = b"written afterwards"


class _Booted(RealFiles):
    """Of one boot or another."""

    def __init__(self, boot: int) -> None:
        super().__init__()
        self._boot = boot

    def boot_id(self) -> tuple[int, int]:
        return self._boot, 0

    def sync(self, fd: int, /) -> None:  # type: ignore[override]
        """Nothing is cut here but what a test cuts."""


def open_at(directory: str, boot: int) -> Partition:
    return Partition(_Booted(boot), directory, "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=6000)


@cache
def template() -> tuple[dict[str, bytes], dict[int, bytes]]:
    """A sound partition of some segments, by file; and what it holds, by offset."""
    written: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as directory:
        partition = open_at(directory, 1)
        for number in range(24):
            values = [b"%d.%d." % (number, n) + b"x" * (number * 97 % 1000) for n in range(1 + number % 4)]
            raw = encode_many([Message(value, b"k") for value in values], NOW_MS + number)
            offset = partition.append(raw, len(values), NOW_MS + number)
            written |= dict(enumerate(values, offset))
            if number == 20:
                partition._write_checkpoint()
        files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
        partition.close()
    return files, written


def checkpointed() -> dict[str, int]:
    """The state of the head that the checkpoint has: what is before it is on stable storage."""
    body: dict[str, dict[str, int]] = json.loads(json.loads(template()[0]["checkpoint"])["body"])
    return body["state"]


class Harmed(dict[str, bytes | None]):
    """Files by name; None: it is gone. Says only what is not as it was."""

    def __repr__(self) -> str:
        changed = {name: data for name, data in self.items() if data != template()[0][name]}
        return repr({name: data and (len(data), data[:40]) for name, data in changed.items()})


@st.composite
def harmed_files(draw: st.DrawFn, spared: str = "") -> Harmed:
    """The partition's files, one to three of them harmed or gone."""
    files = Harmed(template()[0])
    names = sorted(files.keys() - {spared})
    for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)):
        sound = template()[0][name]
        files[name] = draw(harmed(sound) | st.none() | st.binary(max_size=300))
    return files


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A directory for all examples, one after the other: pytest's own would be one for each test."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def lay(scratch: Path, files: Harmed) -> str:
    directory = scratch / "0"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, data in files.items():
        if data is not None:
            (directory / name).write_bytes(data)
    return str(directory)


def read_everything(partition: Partition, limit: int) -> list[Record]:
    """All that can be read, from every offset on that comes after a damage."""
    found: list[Record] = []
    bounds = partition.bounds()
    offset = bounds.start
    while offset < min(bounds.end, bounds.start + limit):
        cursor = partition.cursor(offset)
        try:
            while records := cursor.read(1000):
                found += records
                offset = records[-1].offset + 1
            offset = max(offset, cursor.offset)
        except CorruptLog:
            event("damage is met")
        finally:
            cursor.close()
        offset += 1
    return found


def check(found: list[Record], written: dict[int, bytes]) -> None:
    for record in found:
        assert written.get(record.offset) == record.value, f"offset {record.offset} is not what was written"
        assert record.key == b"k"


@given(files=harmed_files(), boot=st.sampled_from([1, 2]))
def test_a_harmed_partition_serves_what_was_written_or_nothing(scratch: Path, files: Harmed, boot: int):
    """In the same boot, as one that goes on; or after a reboot, recovered."""
    _, written = template()
    try:
        partition = open_at(lay(scratch, files), boot)
    except BrokerError as error:
        event(f"refused: {type(error).__name__}")
        return
    try:
        check(read_everything(partition, 200), written)
        try:
            offset = partition.append(encode_one(_NEW, b"k", (), NOW_MS), 1, NOW_MS)
            partition.sync()
        except BrokerError as error:
            event(f"an append is refused: {type(error).__name__}")
            return
        # There may be damage right before it that nobody has had reason to look for, and where batches begin may be
        # unknown after it. Who skips that gets what was written, or is told that it is lost.
        lost: list[Lost] = []
        cursor = partition.cursor(offset, lost.append)
        assert [record.value for record in cursor.read(1000)] == [_NEW] or lost
        cursor.close()
        event("appended")
    finally:
        partition.close()


@given(files=harmed_files(spared="checkpoint"))
def test_what_recovery_leaves_is_recovered_to_the_same(scratch: Path, files: Harmed):
    """Twice is once: what the first recovery made of it is sound to the next. A checkpoint that is gone takes with it
    what is known of offsets that were given out."""
    directory = lay(scratch, files)
    ends = []
    for boot in (2, 3):
        try:
            partition = open_at(directory, boot)
        except BrokerError as error:
            event(f"refused: {type(error).__name__}")
            return
        ends.append((partition.bounds(), [record.offset for record in read_everything(partition, 200)]))
        partition.close()
    assert ends[0] == ends[1]


@given(data=st.data())
def test_offsets_that_were_synced_are_never_given_out_again(scratch: Path, data: st.DataObject):
    """Whatever happens to the log and the indexes, with a sound checkpoint the log goes on after it."""
    files = Harmed(template()[0])
    for name in sorted(files):
        if name not in ("checkpoint", "head") and data.draw(st.booleans(), label=name):
            files[name] = data.draw(harmed(template()[0][name]) | st.none())
    try:
        partition = open_at(lay(scratch, files), 2)
    except BrokerError as error:
        event(f"refused: {type(error).__name__}")
        return
    assert partition.append(encode_one(_NEW, None, (), NOW_MS), 1, NOW_MS) >= checkpointed()["next_offset"]
    partition.close()


@given(data=st.data())
def test_a_harmed_tail_is_cut_and_what_is_left_can_all_be_read(scratch: Path, data: st.DataObject):
    """Past the checkpoint anything may have happened. Recovery takes what is sound from there on, and nothing else."""
    files = Harmed(template()[0])
    _, written = template()
    state = checkpointed()
    name = f"{state['segment_base']:020}.log"
    sound, position = template()[0][name], state["position"]
    files[name] = sound[:position] + data.draw(harmed(sound[position:]))
    partition = open_at(lay(scratch, files), 2)
    cursor, found = partition.cursor(0), list[Record]()
    while records := cursor.read(1000):  # which raises at damage
        found += records
    check(found, written)
    end = partition.end()
    assert [record.offset for record in found] == list(range(end))
    assert end >= state["next_offset"]
    cursor.close()
    partition.close()
