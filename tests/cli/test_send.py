"""`taskq send` on a real log, read back with the broker's own reader."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import UUID

import pytest

from taskq.broker import connect
from taskq.broker.port import Record, TopicPartition
from taskq.config import load_settings
from taskq.ladder import topic_for
from taskq.message import decode_envelope
from taskq.trip import DUE, EXPIRES, milliseconds
from tests.cli.conftest import Said, Taskq

TASKS = """
from datetime import date
from taskq import TaskQ

app = TaskQ("shop")

@app.task(name="shop.pack", topic="orders", group="shop")
def pack(order: int, on: date, gift: bool = False) -> None: ...

@app.task(name="shop.rush", topic="orders", group="shop", priority="normal")
def rush(order: int) -> None: ...

paid = app.event("order.paid", topic="orders")

@paid.subscribe(group="shop", name="shop.thank")
def thank(order: int) -> None: ...
"""


@pytest.fixture
def send(taskq: Taskq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Taskq]:
    (tmp_path / "shop_tasks.py").write_text(TASKS)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def send(*arguments: str) -> Said:
        sys.modules.pop("shop_tasks", None)
        return taskq("send", "-A", "shop_tasks", *arguments)

    yield send
    sys.modules.pop("shop_tasks", None)


def stored(folder: Path, topic: str = "orders") -> list[Record]:
    broker = connect(load_settings(broker=folder / ".taskq", environ={}))
    try:
        reader = broker.reader()
        if topic not in broker.admin().topics():
            return []
        parts = range(broker.admin().partitions(topic))
        return [record for part in parts for record in reader.read(TopicPartition(topic, part), 0)]
    finally:
        broker.close()


def test_what_is_sent_is_in_the_log_under_the_id_that_was_printed(send: Taskq, tmp_path: Path):
    said = send("shop.pack", "--args", '[7, "2026-11-22"]', "--kwargs", '{"gift": true}')
    assert (said.code, said.err) == (0, "")
    (record,) = stored(tmp_path)
    envelope = decode_envelope(record.value)
    assert envelope.name == "shop.pack"
    assert UUID(bytes=envelope.id) == UUID(said.out.strip())


def test_an_event_is_published_with_its_fields(send: Taskq, tmp_path: Path):
    assert send("order.paid", "--kwargs", '{"order": 7}').code == 0
    (record,) = stored(tmp_path)
    assert decode_envelope(record.value).event == "order.paid"


def test_an_event_takes_no_positional_arguments(send: Taskq, tmp_path: Path):
    said = send("order.paid", "--args", "[7]")
    assert said.code == 1
    assert "--kwargs only" in said.err
    assert stored(tmp_path) == []


def test_key_topic_and_id_can_be_chosen(send: Taskq, tmp_path: Path):
    arguments = ("--args", '[7, "2026-11-22"]', "--key", "k", "--topic", "elsewhere", "--id", "order-7", "--json")
    assert send("shop.pack", *arguments).json == {"id": "order-7", "task": "shop.pack"}
    (record,) = stored(tmp_path, "elsewhere")
    assert record.key == b"k"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--args", "[7]"],
        ["--args", '["seven", "2026-11-22"]'],
        ["--args", '[7, "yesterday"]'],
        ["--kwargs", '{"order": 7, "on": "2026-11-22", "colour": 1}'],
    ],
)
def test_arguments_that_do_not_fit_are_not_published(send: Taskq, tmp_path: Path, arguments: list[str]):
    said = send("shop.pack", *arguments)
    assert said.code == 1
    assert said.err.startswith("taskq: error: shop.pack")
    assert stored(tmp_path) == []


@pytest.mark.parametrize("arguments", [["--args", "[7"], ["--args", "{}"], ["--kwargs", "[]"], ["--kwargs", "x"]])
def test_arguments_that_are_not_json_are_a_usage_error(send: Taskq, arguments: list[str]):
    said = send("shop.pack", *arguments)
    assert said.code == 2
    assert arguments[0] in said.err


def test_an_unknown_task_names_near_ones(send: Taskq):
    said = send("shop.pak")
    assert said.code == 1
    assert "there is no task 'shop.pak'; did you mean shop.pack" in said.err


def test_without_an_app_it_says_how_to_name_one(taskq: Taskq):
    said = taskq("send", "shop.pack")
    assert said.code == 2
    assert "TASKQ_APP" in said.err


PACK = ("shop.pack", "--args", '[7, "2026-11-22"]')


def test_a_delay_waits_on_the_ladder(send: Taskq, tmp_path: Path):
    before = time.time()
    assert send(*PACK, "--delay", "300", "--expires", "1000").code == 0
    assert stored(tmp_path) == []
    (record,) = stored(tmp_path, topic_for(300_000))
    due_ms, expires_ms = milliseconds(record.headers, DUE), milliseconds(record.headers, EXPIRES)
    assert due_ms is not None
    assert expires_ms is not None
    assert due_ms / 1000 == pytest.approx(before + 300, abs=20)
    assert expires_ms / 1000 == pytest.approx(before + 1000, abs=20)


@pytest.mark.parametrize("offset", [timedelta(0), timedelta(hours=5, minutes=30)])
def test_a_moment_has_its_offset(send: Taskq, tmp_path: Path, offset: timedelta):
    at = datetime.now(timezone(offset)).replace(microsecond=0) + timedelta(hours=2)
    assert send(*PACK, "--at", at.isoformat()).code == 0
    (record,) = stored(tmp_path, topic_for(7_000_000))
    assert milliseconds(record.headers, DUE) == at.timestamp() * 1000


def test_a_priority_has_a_topic_of_its_own_and_headers_are_kept(send: Taskq, tmp_path: Path):
    assert (
        send("shop.rush", "--args", "[7]", "--priority", "high", "--header", "trace=a=b", "--header", "by=hand").code
        == 0
    )
    (record,) = stored(tmp_path, "orders.high")
    assert {("trace", b"a=b"), ("by", b"hand")} <= set(record.headers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "tomorrow"], "'tomorrow' is not like 2026-"),
        (["--at", "2026-11-22T10:00"], "has no offset: add Z"),
        (["--at", "2100-01-01T00:00Z"], "at"),
        (["--delay", "-1"], "delay"),
        (["--delay", "nan"], "delay"),
        (["--delay", "1", "--at", "2026-11-22T10:00Z"], "delay= and at= both say when"),
        (["--expires", "soon"], "--expires"),
        (["--priority", "highest"], "--priority"),
        (["--header", "trace"], "'trace' is not NAME=VALUE"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(send: Taskq, tmp_path: Path, arguments: list[str], message: str):
    said = send(*PACK, *arguments)
    assert said.code == 2
    assert message in said.err
    assert stored(tmp_path) == []


def test_an_event_takes_no_option_of_a_call(send: Taskq):
    said = send("order.paid", "--kwargs", '{"order": 7}', "--delay", "5")
    assert said.code == 1
    assert "no option of a call" in said.err
