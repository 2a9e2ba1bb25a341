"""What publishing sends, and what it refuses; from sync and from async code."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import msgspec
import pytest

from taskq import TaskQ
from taskq.broker.port import Headers, Message, WouldBlock
from taskq.config import load_settings
from taskq.decorators import Task
from taskq.errors import ArgumentsError, ConfigError, MessageTooLarge
from taskq.message import decode_envelope
from taskq.metrics import metrics
from tests.publishing import aadd, add, calls, records, topics


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("test", broker="memory:") as app:
        yield app


class Holder: ...


def test_delay_publishes_one_record_with_the_handles_id(app: TaskQ) -> None:
    task = app.task(topic="feed")(add)

    handle = task.delay(1, b=2)
    (record,) = records(app, "feed")
    envelope = decode_envelope(record.value)
    assert (envelope.name, record.key, record.headers) == (task.name, None, ())
    assert str(UUID(bytes=envelope.id)) == handle.id
    assert task.decode_args(envelope) == ((1,), {"b": 2})
    assert repr(handle) == f"Handle(id={handle.id!r})"


def test_options_change_one_call_and_not_the_task(app: TaskQ) -> None:
    task = app.task(key="constant")(add)

    handle = task.options(key=7, topic="other", id="mine", headers={"trace": "x"}).delay(1)
    task.delay(2)
    (other,) = records(app, "other")
    (usual,) = records(app)
    assert handle.id == decode_envelope(other.value).id == "mine"
    assert (other.key, other.headers) == (b"7", (("trace", b"x"),))
    assert (usual.key, usual.headers) == (b"constant", ())


def test_celerys_spelling_publishes_the_same(app: TaskQ) -> None:
    task = app.task(add)

    handle = task.apply_async((1,), {"b": 2}, task_id="mine", queue="other", headers={"trace": "x"})
    task.apply_async(args=[3, 4])
    (record,) = records(app, "other")
    assert handle.id == "mine"
    assert record.headers == (("trace", b"x"),)
    assert calls(app, task, "other") == [((1,), {"b": 2})]
    assert calls(app, task) == [((3, 4), {})]


@pytest.mark.parametrize(("args", "kwargs"), [("ab", None), (5, None), (None, [1]), ((1,), "b")])
def test_celerys_spelling_takes_a_tuple_and_a_mapping(app: TaskQ, args: Any, kwargs: Any) -> None:
    with pytest.raises(ArgumentsError, match="apply_async"):
        app.task(add).apply_async(args, kwargs)


def test_celerys_other_options_are_refused(app: TaskQ) -> None:
    link: Any = {"link": add}
    with pytest.raises(ConfigError, match="no option 'link'"):
        app.task(add).apply_async((1,), **link)


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"c": 2}, "no parameter 'c'"),
        (("x",), {}, "parameter 'a': Expected `int`, got `str`"),
        ((1,), {"b": "x"}, "parameter 'b': Expected `int`, got `str`"),
    ],
)
def test_wrong_arguments_fail_before_anything_is_published(
    app: TaskQ, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
) -> None:
    task: Task[..., int] = app.task(add)
    for publish in (task.delay, task.options(key="7").delay, lambda *a, **k: task.apply_async(a, k)):
        with pytest.raises(ArgumentsError, match=reason):
            publish(*args, **kwargs)
    assert topics(app) == []


def test_a_type_that_can_not_be_converted_fails_when_publishing(app: TaskQ) -> None:
    @app.task
    def odd(holder: Holder) -> None: ...

    with pytest.raises(ConfigError, match=r"parameter 'holder'.*cloudpickle"):
        odd.delay(Holder())


def test_a_message_over_the_limit_is_refused(app: TaskQ) -> None:
    @app.task
    def store(data: bytes) -> None: ...

    with pytest.raises(MessageTooLarge):
        store.delay(bytes(1024 * 1024))
    with pytest.raises(MessageTooLarge):
        store.map([(b"",), (bytes(1024 * 1024),)])


@pytest.mark.parametrize(
    ("key", "args", "kwargs", "expected"),
    [
        (lambda author_id, post_id: author_id, (1, 2), {}, b"1"),
        (lambda post_id: post_id, (1, 2), {}, b"2"),
        (lambda post_id, author_id: f"{post_id}/{author_id}", (1, 2), {}, b"2/1"),
        (lambda author_id: author_id, (1,), {}, b"1"),
        (lambda post_id: post_id, (1,), {}, b"5"),
        (lambda post_id: post_id, (), {"author_id": 1, "post_id": 3}, b"3"),
        (lambda author_id, loud: f"{author_id}{loud}", (1, 2), {"loud": True}, b"1True"),
        (lambda: "all", (1, 2), {}, b"all"),
        (lambda author_id: None, (1, 2), {}, None),
        (lambda author_id: UUID(int=author_id), (1, 2), {}, b"00000000-0000-0000-0000-000000000001"),
        (lambda author_id: b"\xff", (1, 2), {}, b"\xff"),
        ("constant", (1, 2), {}, b"constant"),
    ],
)
def test_the_key_is_made_of_the_arguments_it_names(
    app: TaskQ, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: bytes | None
) -> None:
    def fan_out(author_id: int, post_id: int = 5, *, loud: bool = False) -> None: ...

    task: Task[..., None] = app.task(key=key)(fan_out)
    task.delay(*args, **kwargs)
    if not kwargs:
        task.map([args])
    assert {record.key for record in records(app)} == {expected}


def test_a_key_that_is_no_key_fails_before_anything_is_published(app: TaskQ) -> None:
    task = app.task(key=lambda a: 1.5)(add)

    with pytest.raises(ArgumentsError, match="the key of"):
        task.delay(1)
    assert topics(app) == []


def test_map_publishes_many_with_a_handle_each(app: TaskQ) -> None:
    task = app.task(add)

    handles = task.map((n, n) if n % 2 else [n] for n in range(100))  # type: ignore[misc]
    assert len({handle.id for handle in handles}) == 100
    assert sorted(args[0] for args, _ in calls(app, task)) == list(range(100))
    assert {str(UUID(bytes=decode_envelope(record.value).id)) for record in records(app)} == {h.id for h in handles}


def test_map_of_nothing_publishes_nothing(app: TaskQ) -> None:
    assert app.task(add).map([]) == []
    assert topics(app) == []


@pytest.mark.parametrize("wrong", [("x",), (), (1, 2, 3), "ab", 5, {"a": 1}, None])
def test_map_publishes_nothing_if_one_call_is_wrong(app: TaskQ, wrong: Any) -> None:
    with pytest.raises(ArgumentsError):
        app.task(add).map([(1,), wrong])
    assert topics(app) == []


def test_map_can_not_give_one_id_to_all(app: TaskQ) -> None:
    with pytest.raises(ConfigError, match="id"):
        app.task(add).options(id="mine").map([(1,)])


def test_options_of_map_are_for_all(app: TaskQ) -> None:
    app.task(add).options(key="7", headers={"trace": "x"}).map([(1,), (2,)])

    assert [(record.key, record.headers) for record in records(app)] == [(b"7", (("trace", b"x"),))] * 2


def test_a_json_task_publishes_what_any_language_reads(app: TaskQ) -> None:
    handle = app.task(name="feed.add", serializer="json")(add).delay(1, b=2)

    (record,) = records(app)
    value = msgspec.json.decode(record.value or b"")
    assert value == {"task": "feed.add", "id": handle.id, "args": [1], "kwargs": {"b": 2}}


def test_publishing_is_counted_and_timed(app: TaskQ) -> None:
    task = app.task(name="counted", topic="counted")(add)
    task.delay(1)
    task.map([(1,), (2,)])
    with pytest.raises(ArgumentsError):
        task.options(topic="counted").delay("x")  # type: ignore[arg-type]

    assert metrics.published.labels("counted", "counted").value == 3
    _total, *buckets = metrics.publish_seconds.labels("counted").read()
    assert sum(buckets) == 2


def test_importing_and_decorating_open_nothing(tmp_path: Path) -> None:
    program = """
        import builtins, os, sys
        from taskq import TaskQ, task, event

        def refuse(*args, **kwargs):
            raise AssertionError(f"opened {args}")

        builtins.open = os.open = os.mkdir = refuse
        @task(topic="feed", key=lambda a: a)
        def f(a: int): ...
        @event("e", topic="t").subscribe(group="g")
        def g(a: int): ...
        TaskQ("x", broker="log").task(f.fn)
        assert not [name for name in sys.modules if name.startswith(("taskq.broker.embedded", "anyio", "cloudpickle"))]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, check=True, timeout=30)
    assert list(tmp_path.iterdir()) == []


# --- from async code


class BusyProducer:
    """A producer whose `send` would have to wait: it may only be made to in another thread."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes | None, bytes | None, Headers]] = []

    def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Headers = (), *, wait: bool = True
    ) -> tuple[int, int]:
        if not wait:
            raise WouldBlock
        with pytest.raises((RuntimeError, anyio.NoEventLoopError)):
            anyio.get_current_task()
        self.sent.append((topic, value, key, headers))
        return 0, 0

    def send_many(self, topic: str, messages: Sequence[Message]) -> None:
        for message in messages:
            self.send(topic, *message)

    def close(self) -> None: ...


def make_busy(app: TaskQ) -> BusyProducer:
    app.opened = producer = BusyProducer()
    return producer


@pytest.mark.anyio
async def test_adelay_and_amap_publish_as_delay_and_map_do(app: TaskQ) -> None:
    task = app.task(key=lambda a: a)(aadd)

    handle = await task.adelay(1, b=2)
    handles = await task.options(key="k").amap([(3,), (4, 5)])
    assert {str(UUID(bytes=decode_envelope(record.value).id)) for record in records(app)} == {
        handle.id,
        *(handle.id for handle in handles),
    }
    assert sorted(map(str, calls(app, task))) == ["((1,), {'b': 2})", "((3,), {})", "((4, 5), {})"]
    assert {record.key for record in records(app)} == {b"1", b"k"}


@pytest.mark.anyio
async def test_what_would_block_is_done_in_a_thread(app: TaskQ) -> None:
    task = app.task(add)
    producer = make_busy(app)
    await task.adelay(1)
    await task.options(headers={"trace": "x"}).adelay(2)
    await task.amap([(3,)])
    await app.event("happened").apublish(a=1)
    assert [topic for topic, _, _, _ in producer.sent] == ["default"] * 4
    assert producer.sent[1][3] == (("trace", b"x"),)


@pytest.mark.anyio
async def test_wrong_arguments_fail_in_async_code_too(app: TaskQ) -> None:
    task: Task[..., int] = app.task(add)
    with pytest.raises(ArgumentsError):
        await task.adelay("x")
    with pytest.raises(ArgumentsError):
        await task.amap([("x",)])
    assert topics(app) == []


@pytest.mark.anyio
async def test_a_cancelled_adelay_published_nothing(app: TaskQ) -> None:
    task = app.task(add)
    await task.adelay(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await task.adelay(2)
    assert scope.cancelled_caught
    assert calls(app, task) == [((1,), {})]


@pytest.mark.anyio
async def test_adelay_lets_others_run(app: TaskQ) -> None:
    task = app.task(add)
    task.delay(0)
    turns: list[str] = []

    async def publish(name: str) -> None:
        for _ in range(5):
            await task.adelay(1)
            turns.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(publish, "a")
        group.start_soon(publish, "b")
    assert set(turns[:3]) == set(turns[-3:]) == {"a", "b"}


def test_what_a_compacted_topic_would_refuse_when_it_is_due_is_refused_now() -> None:
    settings = load_settings(broker="memory:", topics={"latest": {"cleanup_policy": "compact"}})
    with TaskQ("test", settings=settings) as app:
        task = app.task(topic="latest")(add)
        for refused in (task.options(delay=60), task.options(at=datetime.now(UTC) + timedelta(seconds=60))):
            with pytest.raises(ConfigError, match=r"'latest' is compacted.*needs a key there"):
                refused.delay(1, 2)
            with pytest.raises(ConfigError, match="'latest' is compacted"):
                refused.map([(1, 2)])
        task.options(delay=60, key="k").delay(1, 2)
        assert [topic for topic in topics(app) if topic.startswith("__taskq.delay")] == ["__taskq.delay.16"]
