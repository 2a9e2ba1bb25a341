"""`taskq log verify`: every kind of damage is found and placed, and nothing else is taken for damage."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from taskq.broker.log.files import RealFiles
from taskq.broker.log.inspection import DAMAGE, INFORMATION, WARNING, Finding
from taskq.broker.log.verify import Verified, verify
from taskq.errors import ConfigError
from tests.broker.log.conftest import NOW_MS
from tests.broker.log.segments import append_many, batches, fill, flip, logs, overwrite
from tests.broker.log.test_lookup import open_in
from tests.broker.log.test_partition import STOPS_IN_THE_MIDDLE, read_all, reboot, start_python
from tests.processes import wait_until


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A partition's directory with some closed segments, that nobody has open."""
    partition = open_in(str(tmp_path), 900)
    for _ in range(8):
        append_many(partition, 10)
        fill(partition, [NOW_MS] * 3)
    partition.close()
    assert len(logs(tmp_path)) > 3
    return tmp_path


def look(path: Path) -> Verified:
    return verify(RealFiles(), str(path))


def damage(path: Path) -> list[Finding]:
    return [one for one in look(path).findings if one.severity == DAMAGE]


def of(path: Path, severity: str) -> list[tuple[str, str]]:
    return [(Path(one.file).name, one.what) for one in look(path).findings if one.severity == severity]


def test_a_sound_log_has_no_findings_and_is_counted(log: Path) -> None:
    found = look(log)
    assert found.findings == []
    counts = found.counts
    assert (counts.partitions, counts.segments) == (1, len(logs(log)))
    assert (counts.batches, counts.records) == (32, 104)
    assert counts.size_bytes == sum(path.stat().st_size for path in logs(log))


@pytest.mark.parametrize("byte", [0, 7, 9, 16, 18, 21, 25, 40, 60, 61, 68])
@pytest.mark.parametrize("number", [0, 5, 17, 31])
def test_a_flipped_bit_is_found_and_placed(log: Path, number: int, byte: int) -> None:
    hit = batches(log)[number]
    flip(hit.path, hit.position + byte, 4)
    (one,) = damage(log)
    assert (one.file, one.position, one.size_bytes) == (str(hit.path), hit.position, hit.size)
    assert (one.offset, one.next_offset, one.records_max) == (hit.first, hit.next_offset, hit.next_offset - hit.first)
    (alone,) = damage(hit.path)
    assert alone == one


def test_each_of_several_damages_is_found(log: Path) -> None:
    found = batches(log)
    hits = [found[2], found[4], found[20], found[31]]
    for hit in hits:
        flip(hit.path, hit.position + 64)
    assert [(one.offset, one.next_offset) for one in damage(log)] == [(hit.first, hit.next_offset) for hit in hits]


@pytest.mark.parametrize("which", [0, 1, -1])
@pytest.mark.parametrize("left", [0, 50, 200])
def test_a_truncated_file_is_found(log: Path, which: int, left: int) -> None:
    path = logs(log)[which]
    lost = [batch for batch in batches(log) if batch.path == path and batch.position + batch.size > left]
    path.write_bytes(path.read_bytes()[:left])
    (one,) = damage(log)
    assert (one.file, one.position) == (str(path), lost[0].position)
    assert (one.offset, one.next_offset) == (lost[0].first, lost[-1].next_offset)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_missing_file_is_found(log: Path, which: int) -> None:
    path = logs(log)[which]
    lost = [batch for batch in batches(log) if batch.path == path]
    path.unlink()
    (one,) = damage(log)
    assert (one.offset, one.next_offset) == (lost[0].first, lost[-1].next_offset)


def test_all_files_missing_is_found(log: Path) -> None:
    for path in logs(log):
        path.unlink()
    (one,) = damage(log)
    assert (one.offset, one.next_offset) == (0, 104)


def test_a_zeroed_tail_is_found(log: Path) -> None:
    path = logs(log)[-1]
    size = path.stat().st_size
    hit = [batch for batch in batches(log) if batch.path == path][-2]
    overwrite(path, hit.position, bytes(size - hit.position))
    (one,) = damage(log)
    assert (one.file, one.position, one.size_bytes) == (str(path), hit.position, size - hit.position)
    assert (one.offset, one.next_offset) == (hit.first, 104)


def test_a_segment_of_another_log_is_found(log: Path) -> None:
    first, second = logs(log)[:2]
    second.write_bytes(first.read_bytes())
    (one,) = damage(log)
    assert (one.file, one.position, one.offset) == (str(second), 0, int(second.stem))
    foreign = log / f"{3:020}.log"
    foreign.write_bytes(b"not a log at all")
    assert str(foreign) in {one.file for one in damage(log)}


def test_segments_that_overlap_are_found(log: Path) -> None:
    first, second = logs(log)[:2]
    part = next(batch for batch in batches(log) if batch.path == second)
    first.write_bytes(first.read_bytes() + second.read_bytes()[: part.size])
    (one,) = damage(log)
    assert one.file == str(first)
    assert f"where the log goes on with {int(second.stem)}" in one.what


def test_foreign_and_left_over_files_are_named(log: Path) -> None:
    (log / "notes.txt").write_text("mine")
    (log / "checkpoint.1-2.tmp").write_text("half")
    (log / f"{999:020}.index").touch()
    assert of(log, DAMAGE) == [("notes.txt", "a foreign file: taskq has not written it; move it away")]
    names = dict(of(log, INFORMATION))
    assert "left over from a process that died" in names["checkpoint.1-2.tmp"]
    assert "no segment" in names[f"{999:020}.index"]


@pytest.mark.parametrize("suffix", [".index", ".timeindex"])
@pytest.mark.parametrize("how", ["missing", "garbage", "short"])
def test_an_unsound_index_is_a_warning_until_it_is_made_anew(log: Path, suffix: str, how: str) -> None:
    path = logs(log)[1].with_suffix(suffix)
    raw = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "garbage":
            path.write_bytes(b"\xff" * 24)
        case _:
            path.write_bytes(raw[:-1])
    assert damage(log) == []
    ((name, _),) = of(log, WARNING)
    assert name == path.name
    partition = open_in(str(log), 900)
    assert partition.cursor(int(path.stem) + 3).read(100)
    assert partition.offset_for(NOW_MS + 1) == 104
    partition.close()
    assert look(log).findings == []


def test_an_unsound_checkpoint_and_report_are_warnings(log: Path) -> None:
    (log / "checkpoint").write_text("{")
    (log / "recovery.json").write_text('[{"time": 3}]')
    assert damage(log) == []
    assert sorted(name for name, _ in of(log, WARNING)) == ["checkpoint", "recovery.json"]


def test_what_recovery_did_is_told(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hit = batches(log)[-3]
    (log / "checkpoint").unlink()
    flip(hit.path, hit.position + 62)
    reboot(monkeypatch)
    open_in(str(log), 900).close()
    assert damage(log) == []
    told = dict(of(log, INFORMATION))
    assert "bytes cut (CRC32C" in told["recovery.json"]
    (aside,) = log.glob("*.aside")
    assert "that recovery has cut" in told[aside.name]


def test_a_torn_tail_of_another_boot_is_no_damage_but_a_hole_is(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = batches(log)[-1]
    raw = last.path.read_bytes()
    checkpoint = (log / "checkpoint").read_bytes()
    (log / "checkpoint").unlink()
    reboot(monkeypatch)
    last.path.write_bytes(raw[:-7])
    assert damage(log) == []
    ((name, what),) = of(log, WARNING)
    assert name == last.path.name
    assert "torn tail" in what
    (log / "checkpoint").write_bytes(checkpoint)
    assert {(one.offset, one.next_offset) for one in damage(log)} >= {(103, 104)}, "the checkpoint knows of more"
    (log / "checkpoint").unlink()
    last.path.write_bytes(raw)
    hit = next(batch for batch in batches(log) if batch.path == last.path)
    flip(hit.path, hit.position + 63)
    assert [(one.offset, one.next_offset) for one in damage(log)] == [(hit.first, hit.next_offset)]


def test_bytes_past_the_head_are_no_damage(tmp_path: Path) -> None:
    with start_python(STOPS_IN_THE_MIDDLE, str(tmp_path)) as writer:
        writer.wait(20)
    assert look(tmp_path).findings == []
    assert logs(tmp_path)[0].stat().st_size > 300
    assert look(tmp_path).counts.size_bytes < 100
    assert look(logs(tmp_path)[0]).findings == []


def test_a_segment_that_was_begun_by_a_writer_that_died_is_no_damage(log: Path) -> None:
    (log / f"{104:020}.log").touch()
    assert damage(log) == []
    assert [name for name, _ in of(log, INFORMATION)] == [f"{104:020}.log"]


def test_a_path_that_is_no_log_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path in (tmp_path, tmp_path / "notes.txt", tmp_path / "nothing"):
        with pytest.raises(ConfigError, match=str(path)):
            look(path)


# -- while others write

ROLLING_WRITER = """
import sys
from taskq.broker.log.batch import encode_many
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.port import Message
partition = Partition(RealFiles(), sys.argv[1], "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=3000)
print("going", flush=True)
number = 0
while True:
    number += 1
    count = number % 7 + 1
    partition.append(encode_many([Message(b"%d" % number)] * count, number), count, number)
"""

SEGMENTS = 40


def test_a_log_that_is_written_to_is_never_taken_for_damaged(tmp_path: Path) -> None:
    """Two writers roll small segments all the time while it is looked through again and again, whole and by file."""
    with start_python(ROLLING_WRITER, str(tmp_path)) as one, start_python(ROLLING_WRITER, str(tmp_path)) as other:
        try:
            for writer in (one, other):
                assert writer.stdout is not None
                assert writer.stdout.readline() == "going\n"
            looks: list[int] = []

            def has_rolled() -> bool:
                looks.append(look_while_written(tmp_path))
                return len(looks) > 10 and len(logs(tmp_path)) > SEGMENTS and looks[-1] > looks[0]

            wait_until(has_rolled, f"ten looks at a log that grows, and {SEGMENTS} segments")
        finally:
            one.kill()
            other.kill()
    assert damage(tmp_path) == []


def look_while_written(directory: Path) -> int:
    found = look(directory)
    assert [one for one in found.findings if one.severity == DAMAGE] == []
    with suppress(ConfigError):  # it has just been removed
        assert [one for one in look(logs(directory)[-1]).findings if one.severity == DAMAGE] == []
    return found.counts.records


CLEANING_WRITER = """
import sys
from taskq.broker.log.batch import encode_many
from taskq.broker.log.compaction import CompactionSettings, compact
from taskq.broker.log.files import RealFiles
from taskq.broker.log.partition import Partition
from taskq.broker.log.retention import clean
from taskq.broker.port import Message, TopicSettings
files = RealFiles()
partition = Partition(files, sys.argv[1], "feed/0", lambda bits: None, lambda end: (), segment_bytes_max=3000)
number = 0
while True:
    for _ in range(120):
        number += 1
        messages = [Message(b"%d" % number, b"key-%d" % (number % 300))] * 2
        partition.append(encode_many(messages, number), 2, number)
    compact(files, partition, CompactionSettings(9000, 0, min_cleanable_dirty_ratio=0.0), number)
    settings = TopicSettings(retention_ms=-1, retention_bytes=12_000, unfinished="delete")
    clean(files, partition, settings, number, 1 << 60)
    print("cleaned", flush=True)
"""

ROUNDS = 12


def test_a_log_that_is_compacted_and_retained_is_never_taken_for_damaged(tmp_path: Path) -> None:
    """And a reader that begins anew each time gets on, to the end."""
    with start_python(CLEANING_WRITER, str(tmp_path)) as writer:
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "cleaned\n"
            partition = open_in(str(tmp_path), 3000)
            for _ in range(ROUNDS):
                look_while_written(tmp_path)
                offsets = [record.offset for record in read_all(partition)]
                assert offsets == sorted(set(offsets))
                for wanted in offsets[:: max(1, len(offsets) // 5)]:
                    assert partition.cursor(wanted).read(1)[0].offset >= wanted
                assert writer.stdout.readline() == "cleaned\n"
            partition.close()
        finally:
            writer.kill()
    assert partition.bounds().start > 0


@pytest.mark.parametrize("moment", ["open", "listdir"])
def test_segments_that_vanish_while_it_looks_are_no_damage(log: Path, moment: str) -> None:
    from attrs import evolve

    from taskq.broker.log.recovery import remove_segment

    partition = open_in(str(log), 900)
    removed: list[int] = []

    def remove_some(*_: object) -> None:
        if not removed:
            removed.extend(int(path.stem) for path in logs(log)[:2])
            partition.head.republish(evolve(partition.head.state(), start_offset=int(logs(log)[2].stem)))
            for base in removed:
                remove_segment(RealFiles(), str(log), base)

    files = watching(moment, remove_some)
    assert verify(files, str(log)).findings == []
    assert removed
    partition.close()


def watching(call: str, then: Callable[..., None]) -> RealFiles:
    """Real files, that do `then` after the first listing, or before a log is opened."""

    class Watching(RealFiles):
        def listdir(self, path: str) -> list[str]:
            found = super().listdir(path)
            if call == "listdir":
                then()
            return found

        def open(self, path: str, *, create: bool = False, write: bool = True) -> int:
            if call == "open" and path.endswith(".log"):
                then()
            return super().open(path, create=create, write=write)

    return Watching()


def test_reports_can_be_written_as_json(log: Path) -> None:
    flip(logs(log)[0], 63)
    said = subprocess.run(
        [sys.executable, "-m", "taskq", "log", "verify", str(log), "--json"], capture_output=True, text=True, timeout=30
    )
    assert said.returncode == 1
    document = json.loads(said.stdout)
    assert document["damaged"] is True
    (one,) = document["findings"]
    assert (one["file"], one["position"], one["offset"]) == (str(logs(log)[0]), 0, 0)
