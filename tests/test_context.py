"""What `current` says, and to whom."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import pytest

from taskq import Reject, TaskQ, current
from taskq.broker.port import Record, TopicPartition
from taskq.context import Current, enter, running
from taskq.decorators import Task
from taskq.errors import ConfigError, TaskqError
from taskq.message import decode_envelope, derive_id
from taskq.metrics import Metrics
from taskq.worker.progress import Progress
from taskq.worker.work import Job, Work

FEED_1 = TopicPartition("feed", 1)
ATTRIBUTES = [name for name, value in vars(Current).items() if isinstance(value, property)]


@pytest.fixture
def fan_out() -> Iterator[Task[..., Any]]:
    app = TaskQ("test", broker="memory:")

    @app.task(name="feed.fan_out", topic="feed", group="feed")
    def fan_out(author_id: int) -> None: ...

    yield fan_out
    app.close()


def test_in_a_task_current_tells_where_it_comes_from(fan_out: Task[..., Any]) -> None:
    uuid = "0192f0c1-0000-7000-8000-000000000000"
    headers: dict[str, str | bytes] = {"trace": "x", "raw": b"\xff"}
    with running(fan_out, id=uuid, partition=3, offset=17, headers=headers):
        assert current.id == uuid
        assert current.task is fan_out
        assert (current.group, current.topic, current.partition, current.offset) == ("feed", "feed", 3, 17)
        assert current.headers == {"trace": "x", "raw": "\ufffd"}
        assert (current.attempt, current.delivery, current.deadline) == (1, 1, None)
        assert repr(current) == f"<current: feed.fan_out {uuid} at feed/3/17 for group feed>"


def test_an_invocation_without_an_id_has_one_all_the_same(fan_out: Task[..., Any]) -> None:
    with running(fan_out, partition=3, offset=17):
        assert current.id == str(UUID(bytes=derive_id("feed", 3, 17)))


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_outside_a_task_every_attribute_says_that_there_is_none(attribute: str) -> None:
    with pytest.raises(TaskqError, match="no task is running here"):
        getattr(current, attribute)
    assert repr(current) == "<current: no task is running>"


def test_current_can_not_be_changed() -> None:
    with pytest.raises(AttributeError):
        current.id = "x"  # type: ignore[misc]


def test_a_worker_enters_with_what_it_has_at_hand(fan_out: Task[..., Any]) -> None:
    envelope = decode_envelope(b'{"task": "feed.fan_out", "id": "mine", "args": [1]}')
    record = Record(5, 0, None, b"", (("trace", b"x"), ("taskq-origin", b"feed/1/2")))
    with running(fan_out, id="outer"):
        enter((Job(fan_out, "other", Metrics()), envelope, record, Work(TopicPartition("feed", 1), Progress(0))))
        assert (current.id, current.group, current.partition, current.offset) == ("mine", "other", 1, 5)
        assert current.headers == {"trace": "x"}
    with pytest.raises(TaskqError):
        _ = current.id


@pytest.mark.anyio
async def test_async_tasks_do_not_see_each_others(fan_out: Task[..., Any]) -> None:
    seen: list[tuple[str, str]] = []

    async def look(name: str) -> None:
        with running(fan_out, id=name):
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
                seen.append((name, current.id))

    async with anyio.create_task_group() as group:
        group.start_soon(look, "a")
        group.start_soon(look, "b")
    assert len(seen) == 6
    assert all(name == found for name, found in seen)


@pytest.mark.anyio
async def test_a_thread_that_a_task_uses_sees_the_tasks(fan_out: Task[..., Any]) -> None:
    with running(fan_out, id="a"):
        assert await anyio.to_thread.run_sync(lambda: current.id) == "a"


def test_the_logger_says_which_invocation(fan_out: Task[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    with running(fan_out, id="50%"):
        current.logger.warning("%d followers", 3, extra={"mine": True})
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("feed.fan_out", logging.WARNING)
    assert record.getMessage() == "feed.fan_out[50%] 3 followers"
    assert (vars(record)["taskq_task"], vars(record)["taskq_id"], vars(record)["mine"]) == ("feed.fan_out", "50%", True)


def test_the_logger_takes_no_extra_and_forges_no_line(
    fan_out: Task[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    envelope = decode_envelope(b'{"task": "feed.fan_out", "id": "i\\n2026 CRITICAL forged"}')
    with running(fan_out):
        enter((Job(fan_out, "other", Metrics()), envelope, Record(5, 0, None, b"", ()), Work(FEED_1, Progress(0))))
        current.logger.warning("here", extra=None)
    (record,) = caplog.records
    assert record.getMessage() == "feed.fan_out[i\\n2026 CRITICAL forged] here"
    assert vars(record)["taskq_id"] == "i\n2026 CRITICAL forged"


def test_what_running_is_given_is_checked(fan_out: Task[..., Any]) -> None:
    with pytest.raises(ConfigError), running(fan_out, id=""):
        pass


def test_a_rejection_has_its_reason() -> None:
    error = pickle.loads(pickle.dumps(Reject("no such author")))

    assert (str(error), error.reason) == ("no such author", "no such author")
    assert Reject().reason == ""
