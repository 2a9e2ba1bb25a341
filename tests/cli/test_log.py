"""`taskq log` on real logs: what it prints, and its exit codes."""

from __future__ import annotations

import json
from base64 import b64decode
from pathlib import Path

import pytest
from msgspec import Raw, msgpack

from taskq import TaskQ
from taskq.broker.embedded import EmbeddedBroker
from taskq.broker.port import Message
from taskq.message import encode_msgpack
from tests.broker.log.segments import batches, flip
from tests.cli.conftest import Taskq


def fan_out(author: int, *, title: str = "") -> None:
    """What is published."""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A data directory of one topic with one partition: ten records in ten batches, then five in one."""
    broker = EmbeddedBroker(str(tmp_path / ".taskq"), partitions_default=1)
    for number in range(10):
        broker.producer().send("feed", b"%d" % number, b"key-%d" % number, (("trace", b"t-%d" % number),))
    broker.producer().send_many("feed", [Message(b"many")] * 5)
    broker.close()
    return tmp_path / ".taskq"


def partition_of(log: Path) -> Path:
    return log / "topics" / "feed" / "0"


def damaged(log: Path, *numbers: int) -> Path:
    """Flip a bit in each of these batches; return their file."""
    found = batches(partition_of(log))
    for number in numbers:
        flip(found[number].path, found[number].position + 64)
    return found[0].path


# -- verify


def test_a_sound_log_verifies(taskq: Taskq, log: Path):
    for path in ((), (str(log),), (str(log / "topics" / "feed"),), (str(partition_of(log)),)):
        said = taskq("log", "verify", *path)
        assert (said.code, said.err) == (0, "")
        assert "11 batches, 15 records" in said.out
        assert said.out.endswith("sound\n")


def test_damage_is_an_exit_code_and_a_line_that_says_where(taskq: Taskq, log: Path):
    file = damaged(log, 4, 10)
    said = taskq("log", "verify", str(log))
    assert said.code == 1
    first, second, last = said.out.splitlines()
    hit = batches_before(log)
    assert first.startswith(f"damage: {file}: byte {hit[4].position}: CRC32C is")
    assert first.endswith("offsets 4 to 4 are lost, at most 1 records")
    assert second.endswith("offsets 10 to 14 are lost, at most 5 records")
    assert last.endswith(": damaged")


def batches_before(log: Path):
    """Where the batches are: flipping bits in records has not moved them."""
    return batches(partition_of(log))


def test_verify_speaks_json(taskq: Taskq, log: Path):
    assert taskq("log", "verify", str(log), "--json").json["damaged"] is False
    file = damaged(log, 4)
    said = taskq("log", "verify", str(log), "--json")
    assert said.code == 1
    (one,) = said.json["findings"]
    assert one["severity"] == "damage"
    assert (one["file"], one["offset"], one["next_offset"], one["records_max"]) == (str(file), 4, 5, 1)
    assert said.json["looked_through"]["batches"] == 10


def test_a_warning_is_no_failure(taskq: Taskq, log: Path):
    (partition_of(log) / "checkpoint").write_text("{")
    said = taskq("log", "verify", str(log))
    assert said.code == 0
    assert said.out.startswith(f"warning: {partition_of(log)}/checkpoint: ")


def test_a_long_one_shows_progress_on_a_terminal(taskq: Taskq, log: Path, monkeypatch: pytest.MonkeyPatch):
    import sys

    assert taskq("log", "verify", str(log)).err == ""
    monkeypatch.setattr("taskq.cli.log._PROGRESS_BYTES_MIN", 1)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said = taskq("log", "verify", str(log))
    assert "verifying" in said.err
    assert "100%" in said.err
    assert said.out.endswith("sound\n")


def test_what_is_no_log_is_a_usage_error(taskq: Taskq, tmp_path: Path):
    for command in ("verify", "dump"):
        said = taskq("log", command, str(tmp_path / "nothing"))
        assert said.code == 2
        assert "there is no" in said.err
        said = taskq("log", command, str(tmp_path))
        assert said.code == 2
        assert "holds nothing of a log" in said.err
        assert taskq("log", command, "--broker", "memory:").code == 2


# -- dump


def test_dump_prints_batches(taskq: Taskq, log: Path):
    said = taskq("log", "dump", str(log))
    assert said.code == 0
    file, *lines = said.out.splitlines()
    assert file == str(partition_of(log) / f"{0:020}.log")
    assert len(lines) == 11
    found = batches(partition_of(log))
    for line, batch in zip(lines, found, strict=True):
        assert line.startswith(f"  byte {batch.position}  offsets {batch.first} to {batch.next_offset - 1}  20")
        assert f"  {batch.size} bytes  crc 0x" in line
    assert "5 records" in lines[-1]


def test_dump_prints_records(taskq: Taskq, log: Path):
    lines = taskq("log", "dump", str(log), "--records").out.splitlines()
    records = [line for line in lines if line.startswith("    ")]
    assert len(records) == 15
    offset, _, key, size, value, header = records[3].strip().split("  ")
    assert (offset, key, size, value, header) == ("3", "key 'key-3'", "1 bytes", "'3'", "'trace': 't-3'")


@pytest.mark.parametrize(
    ("options", "offsets"),
    [
        (("--offset", "8"), [8, 9, 10, 11, 12, 13, 14]),
        (("--offset", "12"), [12, 13, 14]),
        (("--limit", "3"), [0, 1, 2]),
        (("--offset", "9", "--limit", "3"), [9, 10, 11]),
        (("--offset", "15"), []),
    ],
)
def test_dump_begins_and_ends_where_it_is_told_to(taskq: Taskq, log: Path, options, offsets):
    said = taskq("log", "dump", str(partition_of(log)), "--records", "--json", *options)
    assert said.code == 0
    assert [record["offset"] for batch in said.json for record in batch["records"]] == offsets
    text = taskq("log", "dump", str(partition_of(log)), "--records", *options).out
    assert [int(line.split()[0]) for line in text.splitlines() if line.startswith("    ")] == offsets


def test_a_limit_without_records_is_of_batches(taskq: Taskq, log: Path):
    assert len(taskq("log", "dump", str(log), "--limit", "2", "--json").json) == 2
    assert len(taskq("log", "dump", str(log), "--limit", "2").out.splitlines()) == 3


def test_dump_ends_at_damage(taskq: Taskq, log: Path):
    file = damaged(log, 4)
    position = batches(partition_of(log))[4].position
    for extra in ((), ("--records",)):
        said = taskq("log", "dump", str(log), *extra)
        assert said.code == 1
        assert said.err.startswith(f"taskq: error: {file}: damaged at byte {position}: CRC32C")
        assert "offsets 3 to 3" in said.out
        assert "offsets 5 to 5" not in said.out
    said = taskq("log", "dump", str(log), "--json")
    assert said.code == 1
    assert [batch["base_offset"] for batch in said.json] == [0, 1, 2, 3]


def test_dump_passes_over_damage_when_told_to(taskq: Taskq, log: Path):
    damaged(log, 4, 10)
    said = taskq("log", "dump", str(log), "--records", "--skip", "--json")
    assert said.code == 0
    assert [batch["base_offset"] for batch in said.json if "lost" not in batch] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    lost = [one["lost"] for one in said.json if "lost" in one]
    assert [(one["offset"], one["next_offset"]) for one in lost] == [(4, 5), (10, 15)]
    text = taskq("log", "dump", str(log), "--skip")
    assert text.code == 0
    assert text.out.count("LOST") == 2
    assert "offsets 10 to 14 are lost" in text.out


def test_damage_below_the_offset_is_not_its_business(taskq: Taskq, log: Path):
    damaged(log, 4)
    said = taskq("log", "dump", str(log), "--skip", "--offset", "6", "--json")
    assert [batch["base_offset"] for batch in said.json] == [6, 7, 8, 9, 10]


def test_an_invocation_is_shown_as_a_call(taskq: Taskq, log: Path):
    app = TaskQ("shown", broker=str(log))
    handle = app.task(topic="calls")(fan_out).options(key="7", headers={"h": "v"}).delay(1, title="a\x1b[31mb")
    app.close()
    line = taskq("log", "dump", str(log / "topics" / "calls"), "--records").out.splitlines()[-1]
    assert "fan_out(1, title='a\\x1b[31mb')" in line
    assert f"id {handle.id}" in line
    assert "\x1b" not in line
    (batch,) = taskq("log", "dump", str(log / "topics" / "calls"), "--records", "--json").json
    (record,) = batch["records"]
    assert record["invocation"]["args"] == [1]
    assert record["invocation"]["kwargs"] == {"title": "a\x1b[31mb"}
    assert (record["key"], record["headers"]) == ("7", {"h": "v"})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'{"task": "feed.go", "args": [1, {"a": null}]}', "feed.go(1, {'a': None})"),
        (b'{"event": "post.created", "kwargs": {"id": 7}}', "event post.created(id=7)"),
        (b"\xff\x00\x1b", "b'\\xff\\x00\\x1b'"),
        (b'{"task": 5}', "'{\"task\": 5}'"),
        (b"", "''"),
        (None, "no value (a tombstone)"),
    ],
)
def test_other_values_are_shown_as_they_are(taskq: Taskq, log: Path, value: bytes | None, shown: str):
    broker = EmbeddedBroker(str(log), partitions_default=1)
    broker.producer().send("odd", value, b"key")
    broker.close()
    line = taskq("log", "dump", str(log / "topics" / "odd"), "--records").out.splitlines()[-1]
    assert shown in line
    assert "\x1b" not in line


@pytest.mark.parametrize(
    "value",
    [
        msgpack.encode({"task": "feed.go", "args": [{(1, 2): 3}]}),
        msgpack.encode({"task": "feed.go", "args": [float("nan")]}),
        msgpack.encode({"task": "feed.go", "kwargs": {"a": float("inf")}}),
        msgpack.encode({"task": "feed.go", "args": [Raw(b"\x91" * 900 + b"\x90")]}),
        b'{"task": "feed.go", "args": [1e999]}',
        b'{"task": "feed.go", "args": [' + b"9" * 5000 + b"]}",
    ],
    ids=["a tuple as a key", "no number", "infinity", "deep", "infinity in JSON", "a huge number in JSON"],
)
def test_what_json_can_not_say_is_left_out_of_it(taskq: Taskq, log: Path, value: bytes):
    broker = EmbeddedBroker(str(log), partitions_default=1)
    broker.producer().send("odd.dead", value)
    broker.close()
    dumped = taskq("log", "dump", str(log / "topics" / "odd.dead"), "--records", "--json")
    shown = taskq("dead", "show", "0@0", "-g", "odd", "--broker", str(log), "--json")
    for said in (dumped, shown):
        assert said.code == 0
        (document,) = json.loads(said.out, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))
        record = document["records"][0] if "records" in document else document
        assert "invocation" not in record or record["invocation"]["args"]  # it may be deep and yet be JSON
        assert b64decode(record["value_base64"]) == value


def test_a_pickle_is_not_opened(taskq: Taskq, log: Path):
    """What would happen when it is loaded does not."""
    bomb = b"cbuiltins\nexit\n(I3\ntR."
    broker = EmbeddedBroker(str(log), partitions_default=1)
    value = encode_msgpack("task", "feed.go", bytes(16), Raw(msgpack.encode([bomb])), signature=b"x" * 32)
    broker.producer().send("odd", value)
    broker.close()
    line = taskq("log", "dump", str(log / "topics" / "odd"), "--records").out.splitlines()[-1]
    assert "feed.go(b'cbuiltins" in line
    assert line.endswith("signed")


def test_what_recovery_has_set_aside_can_be_looked_at(taskq: Taskq, log: Path):
    found = batches(partition_of(log))
    raw = bytearray(found[0].path.read_bytes())
    raw[found[6].position + 64] ^= 1
    aside = partition_of(log) / f"{0:020}.{found[6].position}.aside"
    aside.write_bytes(raw[found[6].position :])
    assert taskq("log", "dump", str(aside)).code == 1
    said = taskq("log", "dump", str(aside), "--skip", "--json")
    assert [one["base_offset"] for one in said.json if "lost" not in one] == [7, 8, 9, 10]
