"""What may be decorated, with which options, and what becomes of it: tasks, and handlers of events."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from taskq import Retry, TaskQ
from taskq.decorators import AsyncTask, SyncTask
from taskq.errors import ArgumentsError, ConfigError
from taskq.message import decode_envelope
from tests.publishing import aadd, add, calls, records, topics


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("test", broker="memory:") as app:
        yield app


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
    assert app.tasks[f"{aadd.__module__}.aadd"].is_async


def test_a_task_is_pickled_by_name() -> None:
    assert pickle.loads(pickle.dumps(at_module_level)) is at_module_level


@TaskQ("module", broker="memory:").task(name="module.named")
def at_module_level() -> None: ...


def test_a_task_is_called_by_its_module_and_name(app: TaskQ) -> None:
    assert app.task(add).name == f"{add.__module__}.add"
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
    ids=lambda fn: type(fn).__name__,
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
        ({"key": dict}, "no signature"),
        ({"serializer": "pickle"}, "'pickle' is not one of: msgpack, json, cloudpickle"),
        ({"order": "random"}, "'random' is not one of: none"),
        ({"executor": "gpu"}, "'gpu' is not one of: auto"),
        ({"retry": 5}, "retry=5 is not a policy such as Retry"),
        ({"timeout": 0}, "timeout=0 leaves no time"),
        ({"timeout": "30"}, "timeout: '30' is not a number of seconds"),
        ({"expires": -1}, "expires: -1 is not a number of seconds"),
        ({"at_most_once": 1}, "at_most_once=1 is neither True nor False"),
        ({"at_most_once": True, "retry": Retry(1)}, "more than once"),
        ({"max_deliveries": 1}, "max_deliveries=1 is not a whole number from 2 to 100"),
        ({"priority": 1}, "priority=1 is not one of: high, normal, low"),
        ({"rate_limit": "1/y"}, "rate_limit='1/y' is not a rate like"),
        ({"rate_limit": 0}, "rate_limit=0 is not a rate like"),
        ({"rate_limit": 10**400}, "is not a rate like"),
        ({"concurrency": 0}, "concurrency=0 is not a whole number"),
        ({"topic": "__taskq.control"}, "taskq's own"),
        ({"topic": "default.dead"}, "taskq's own"),
        ({"group": "__taskq.delays"}, "taskq's own"),
        ({"topic": "x" * 248, "priority": "normal"}, "can't be the name of a topic"),
    ],
)
def test_a_wrong_option_fails_at_decoration(app: TaskQ, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        app.task(**options)(add)
    assert str(caught.value).startswith(("@task of add", "the key of"))
    assert not app.tasks


def test_options_that_say_the_default_are_no_error(app: TaskQ) -> None:
    task = app.task(order="none", executor="auto", serializer="msgpack", key=None, topic=None, group=None)(add)

    assert (task.group, task.topic, task.declared.executor) == ("default", "default", "auto")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kye": "7"}, "did you mean key"),
        ({"key": 1.5}, "can't be a key"),
        ({"key": True}, "can't be a key"),
        ({"key": "\ud800"}, "can't be a key"),
        ({"topic": "a b"}, "topic"),
        ({"id": ""}, "id"),
        ({"id": "a\nb"}, "use printable characters"),
        ({"headers": {"taskq-x": "1"}}, "taskq's own"),
        ({"delay": -1}, "delay: -1 is not a number of seconds"),
        ({"delay": float("nan")}, "delay: nan is not a number of seconds"),
        ({"delay": 1e9}, "delay: 1000000000.0 is not a number of seconds from 0 to"),
        ({"delay": 1, "at": 1}, "give one"),
        ({"at": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001
        ({"at": "tomorrow"}, "at: 'tomorrow' is not a number of seconds"),
        ({"at": timedelta(hours=1)}, "say delay="),
        ({"at": float("nan")}, "at=nan is no moment"),
        ({"at": float("-inf")}, "at=-inf is no moment"),
        ({"at": 10**400}, "is no moment"),
        ({"expires": 0}, "leaves no time at all"),
        ({"expires": timedelta(0)}, "leaves no time at all"),
        ({"expires": datetime(2020, 1, 1, tzinfo=UTC)}, "leaves no time at all"),
        ({"expires": 30, "delay": 60}, "expires before it is due"),
        ({"topic": "__taskq.control"}, "taskq's own"),
        ({"topic": "default.dead"}, "taskq's own"),
        ({"expires": True}, "expires: True is not a number of seconds"),
        ({"priority": "high"}, 'declare it with @task\\(priority="normal"\\)'),
    ],
)
def test_a_wrong_option_of_a_call_is_refused(app: TaskQ, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        app.task(add).options(**options)


def test_what_would_be_due_after_its_task_says_it_expires_is_refused(app: TaskQ) -> None:
    task = app.task(expires=30)(add)
    with pytest.raises(ConfigError, match=r"expires before it is due.*say expires= anew"):
        task.options(delay=60)
    with pytest.raises(ConfigError, match="expires before it is due"):
        task.apply_async((1,), countdown=60)
    task.options(delay=60, expires=90)
    task.options(delay=20)


def test_a_topic_with_its_priority_must_be_a_name(app: TaskQ) -> None:
    task = app.task(priority="normal")(add)
    with pytest.raises(ConfigError, match="can't be the name of a topic"):
        task.options(topic="x" * 248, priority="high")
    task.options(topic="x" * 248)


def test_what_goes_to_the_retries_of_a_group_is_run_and_so_allowed(app: TaskQ) -> None:
    app.task(add).options(topic="default.retry")


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
    assert handlers.topics == ("default", "edits", "search.retry")


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
