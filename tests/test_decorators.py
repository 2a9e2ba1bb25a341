"""Decorated functions: what may be decorated, what publishing sends, and what it refuses."""

from __future__ import annotations

import functools
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import anyio.lowlevel
import msgspec
import pytest

import taskq
from taskq import TaskQ
from taskq.broker.port import Headers, Message, Record, TopicPartition, WouldBlock
from taskq.decorators import AsyncTask, SyncTask, Task
from taskq.errors import ArgumentsError, ConfigError, MessageTooLarge
from taskq.message import decode_envelope
from taskq.metrics import metrics
from tests.needs import missing


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("test", broker="memory:") as app:
        yield app


def records(app: TaskQ, topic: str = "default") -> list[Record]:
    reader, partitions = app.broker.reader(), range(app.broker.admin().partitions(topic))
    return [record for number in partitions for record in reader.read(TopicPartition(topic, number), 0)]


def topics(app: TaskQ) -> list[str]:
    return app.broker.admin().topics()


def calls(app: TaskQ, task: Task[Any, Any], topic: str = "default") -> list[Any]:
    """The arguments of what was published."""
    return [task.decode_args(decode_envelope(record.value)) for record in records(app, topic)]


def add(a: int, b: int = 10) -> int:
    return a + b


async def aadd(a: int, b: int = 10) -> int:
    await anyio.lowlevel.checkpoint()
    return a + b


# --- what may be decorated


def test_a_plain_call_stays_a_plain_call(app: TaskQ) -> None:
    assert app.task(add)(1, b=2) == 3
    assert app.task(group="feed", name="add2")(add)(1) == 11


@pytest.mark.anyio
async def test_a_plain_call_of_an_async_task_is_awaited(app: TaskQ) -> None:
    assert await app.task(aadd)(1, b=2) == 3


def test_a_task_is_its_function_to_those_who_look(app: TaskQ) -> None:
    @app.task
    def documented(a: int) -> None:
        """What it does."""

    assert (documented.__doc__, documented.__name__) == ("What it does.", "documented")
    assert documented.__wrapped__ is documented.fn
    assert isinstance(documented, SyncTask)
    assert not documented.is_async
    assert isinstance(app.task(aadd), AsyncTask)
    assert app.tasks[f"{__name__}.aadd"].is_async


def test_a_task_is_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level


@TaskQ("module", broker="memory:").task(name="module.named")
def at_module_level() -> None: ...


def test_a_task_is_called_by_its_module_and_name(app: TaskQ) -> None:
    assert app.task(add).name == f"{__name__}.add"
    assert app.task(name="feed.add")(add).name == "feed.add"


@pytest.mark.parametrize(
    ("layout", "command", "name"),
    [
        ("shop.py", ["shop.py"], "shop.f"),
        ("shop.py", ["-m", "shop"], "shop.f"),
        ("shop/tasks.py", ["-m", "shop.tasks"], "shop.tasks.f"),
        ("shop/tasks.py", ["shop/tasks.py"], "shop.tasks.f"),
        ("shop/__main__.py", ["-m", "shop"], "shop.__main__.f"),
    ],
)
def test_a_program_names_its_tasks_as_its_worker_will(
    tmp_path: Path, layout: str, command: list[str], name: str
) -> None:
    file = tmp_path / layout
    file.parent.mkdir(exist_ok=True)
    if file.parent != tmp_path:
        (file.parent / "__init__.py").touch()
    file.write_text("from taskq import task\n@task\ndef f(): ...\nprint(f.name)\n")

    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == name


class Holder:
    def method(self, a: int) -> None: ...

    @classmethod
    def of_class(cls, a: int) -> None: ...

    @staticmethod
    def static(a: int) -> None: ...

    def __call__(self) -> None: ...


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    "fn",
    [Holder, Holder(), Holder.method, Holder.of_class, functools.partial(add, 1), len, generator, async_generator, 5],
    ids=repr,
)
def test_what_is_not_a_plain_function_can_not_be_a_task(app: TaskQ, fn: Any) -> None:
    with pytest.raises(ConfigError, match="@task of"):
        app.task(fn)
    assert not app.tasks


def test_a_task_can_not_be_decorated_again(app: TaskQ) -> None:
    with pytest.raises(ConfigError, match="SyncTask"):
        app.task(app.task(add))


def test_a_static_method_is_a_plain_function(app: TaskQ) -> None:
    assert app.task(Holder.static).name == f"{__name__}.Holder.static"


# --- options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"topc": "feed"}, "no option 'topc'; did you mean topic"),
        ({"colour": "red"}, "no option 'colour'; there are: "),
        ({"topic": "a b"}, "can't be the name of a topic"),
        ({"group": ""}, "can't be the name of a group"),
        ({"name": ""}, "can't be the name of a task"),
        ({"name": "a\n"}, "can't be the name of a task"),
        ({"name": "x" * 251}, "can't be the name of a task"),
        ({"key": 5}, "key=5 is neither"),
        ({"key": lambda author: author}, "no parameter 'author'; there are: a, b"),
        ({"key": lambda *args: args}, "name the arguments"),
        ({"serializer": "pickle"}, "'pickle' is not one of: msgpack, json, cloudpickle"),
        ({"order": "random"}, "'random' is not one of: none"),
        ({"executor": "gpu"}, "'gpu' is not one of: auto"),
        ({"order": "key"}, "not available yet"),
        ({"order": "partition"}, "not available yet"),
        ({"executor": "process"}, "not available yet"),
        ({"retry": 5}, "'retry' is not available yet"),
        ({"timeout": 30}, "'timeout' is not available yet"),
        ({"expires": None}, "'expires' is not available yet"),
        ({"at_most_once": True}, "'at_most_once' is not available yet"),
        ({"max_deliveries": 3}, "'max_deliveries' is not available yet"),
        ({"priority": 1}, "'priority' is not available yet"),
        ({"rate_limit": "1/s"}, "'rate_limit' is not available yet"),
    ],
)
def test_a_wrong_option_fails_at_decoration(app: TaskQ, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        app.task(**options)(add)
    assert str(caught.value).startswith(("@task of add", "the key of"))
    assert not app.tasks


def test_options_that_say_the_default_are_no_error(app: TaskQ) -> None:
    task = app.task(order="none", executor="auto", serializer="msgpack", key=None, topic=None, group=None)(add)

    assert (task.group, task.topic, task.executor) == ("default", "default", "auto")


@pytest.mark.parametrize("option", ["delay", "expires", "at", "countdown", "eta", "retry"])
def test_an_option_of_calls_that_comes_later_is_refused(app: TaskQ, option: str) -> None:
    task: Any = app.task(add)
    with pytest.raises(ConfigError, match=f"'{option}' is not available yet"):
        task.options(**{option: 60})
    with pytest.raises(ConfigError, match=f"'{option}' is not available yet"):
        task.apply_async((1, 2), **{option: 60})
    assert topics(app) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kye": "7"}, "did you mean key"),
        ({"key": 1.5}, "can't be a key"),
        ({"key": True}, "can't be a key"),
        ({"key": "\ud800"}, "can't be a key"),
        ({"topic": "a b"}, "topic"),
        ({"id": ""}, "id"),
        ({"headers": {"taskq-x": "1"}}, "taskq's own"),
    ],
)
def test_a_wrong_option_of_a_call_is_refused(app: TaskQ, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        app.task(add).options(**options)


# --- publishing


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
        self.sent: list[tuple[str, bytes, bytes | None, Headers]] = []

    def send(
        self, topic: str, value: bytes, key: bytes | None = None, headers: Headers = (), *, wait: bool = True
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


# --- events


def test_an_event_is_one_record_whatever_the_handlers(app: TaskQ) -> None:
    created = app.event("post.created", topic="posts")

    @created.subscribe(group="feed")
    def notify(post_id: int) -> None: ...

    @created.subscribe(group="search")
    async def index(post_id: int, title: str = "") -> None: ...

    handle = created.publish(post_id=7, title="x", other=[1])
    (record,) = records(app, "posts")
    envelope = decode_envelope(record.value)
    assert (envelope.name, envelope.event) == ("post.created", "post.created")
    assert str(UUID(bytes=envelope.id)) == handle.id
    assert notify.decode_args(envelope) == ((), {"post_id": 7})
    assert index.decode_args(envelope) == ((), {"post_id": 7, "title": "x"})


@pytest.mark.anyio
async def test_an_event_is_published_from_async_code(app: TaskQ) -> None:
    await app.event("post.created", topic="posts").apublish(post_id=7)

    assert len(records(app, "posts")) == 1


def test_an_event_that_a_handler_can_not_take_is_not_published(app: TaskQ) -> None:
    created = app.event("post.created")

    @created.subscribe
    def notify(post_id: int) -> None: ...

    with pytest.raises(ArgumentsError, match="parameter 'post_id'"):
        created.publish(post_id="x")
    with pytest.raises(ArgumentsError, match="missing a required argument: 'post_id'"):
        created.publish()
    with pytest.raises(ArgumentsError, match="parameter 'odd'"):
        created.publish(post_id=7, odd=object())
    assert topics(app) == []


def test_a_handler_is_a_task_on_the_events_topic(app: TaskQ) -> None:
    @app.event("post.created", topic="posts").subscribe(group="feed", name="notify")
    def notify(post_id: int) -> int:
        return post_id

    assert (notify.name, notify.group, notify.topic, notify(7)) == ("notify", "feed", "posts", 7)
    notify.delay(7)
    assert calls(app, notify, "posts") == [((7,), {})]


def test_one_function_may_handle_several_events(app: TaskQ) -> None:
    created, edited = app.event("post.created"), app.event("post.edited", topic="edits")

    @created.subscribe
    @edited.subscribe(group="search")
    def index(post_id: int) -> None: ...

    assert created.handlers == edited.handlers == (index,)
    handlers = app.handlers("search")
    assert set(handlers.by_name) == {index.name, "post.created", "post.edited"}
    assert handlers.topics == ("default", "edits")


def test_a_task_subscribes_as_it_is_or_not_at_all(app: TaskQ) -> None:
    app.configure(secrets="s" * 16)
    event, task = app.event("e"), app.task(add)
    with pytest.raises(ConfigError, match="keeps its own group"):
        event.subscribe(group="other")(task)
    with pytest.raises(ConfigError, match="another app"):
        TaskQ("other", broker="memory:").event("e").subscribe(task)
    with pytest.raises(ConfigError, match="signed"):
        event.subscribe(app.task(name="pickled", serializer="cloudpickle")(add))
    assert event.handlers == ()


@pytest.mark.parametrize("options", [{"topic": "t"}, {"gruop": "g"}, {"retry": 5}, {"group": "a b"}])
def test_a_wrong_option_of_subscribe_is_refused(app: TaskQ, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        app.event("e").subscribe(**options)(add)
    assert app.event("e").handlers == ()


# --- what type checkers say

TYPED = """
from typing import assert_type
from taskq import Handle, TaskQ, current, event, task

@task
def fan_out(author_id: int, post_id: int = 0) -> int:
    return post_id

@task(topic="feed", key=lambda author_id: author_id)
async def notify(author_id: int) -> str:
    return current.id

@event("post.created").subscribe(group="feed")
def index(post_id: int) -> None: ...

@TaskQ("x").task
async def other(*, loud: bool) -> bytes:
    return b""

async def right() -> None:
    assert_type(fan_out.delay(1, post_id=2), Handle[int])
    assert_type(await fan_out.adelay(1), Handle[int])
    assert_type(fan_out.map([(1,), (2, 3)]), list[Handle[int]])
    assert_type(fan_out(1), int)
    assert_type(notify.delay(1), Handle[str])
    assert_type(await notify(1), str)
    assert_type(fan_out.options(key="7").delay(1), Handle[int])
    assert_type(fan_out.apply_async((1, 2)), Handle[int])
    assert_type(other.delay(loud=True), Handle[bytes])
    index.delay(post_id=1)
"""

WRONG = [
    'fan_out.delay("x")',
    "fan_out.delay()",
    "fan_out.delay(1, 2, 3)",
    "fan_out.delay(1, postid=2)",
    'fan_out.options(key="7").delay("x")',
    'notify.delay("x")',
    "index.delay()",
    "other.delay(True)",
    'fan_out("x")',
    "task(retry=5)",
    'task(order="key")',
    'task(executor="process")',
    "fan_out.options(key=1.5)",
    "fan_out.options(delay=60)",
    "fan_out.apply_async((1, 2), countdown=60)",
    'event("e", key="k")',
    "fan_out.map([1, 2])",
]


def type_check(tmp_path: Path, checker: Callable[[str], list[str]], lines: list[str]) -> str:
    if find_spec(checker.__name__) is None:
        missing(checker.__name__, f"{checker.__name__} is not installed")
    file = tmp_path / "snippet.py"
    file.write_text(TYPED + "\n".join(lines) + "\n")
    return subprocess.run(checker(str(file)), capture_output=True, text=True, timeout=120, check=False).stdout


def mypy(file: str) -> list[str]:
    return [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(Path(file).parent / "cache"), file]


def basedpyright(file: str) -> list[str]:
    return [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--level", "error", file]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", [mypy, basedpyright])
def test_type_checkers_know_what_fits(tmp_path: Path, checker: Callable[[str], list[str]]) -> None:
    first = TYPED.count("\n") + 1

    shown = type_check(tmp_path, checker, WRONG)
    wrong_lines = {int(line) for line in re.findall(r"snippet\.py:(\d+):\d+", shown)}
    assert wrong_lines == set(range(first, first + len(WRONG))), shown


def test_the_package_ships_its_types() -> None:
    assert (Path(taskq.__file__).parent / "py.typed").exists()
