"""An app: what is registered under which name, who runs it, and when the broker is opened."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import taskq
from taskq import TaskQ
from taskq import app as app_module
from taskq.app import Handlers, default_app
from taskq.broker.port import TopicPartition
from taskq.config import load_settings
from taskq.errors import ConfigError
from taskq.message import decode_envelope


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("test", broker="memory:") as app:
        yield app


def add(a: int, b: int = 10) -> int:
    return a + b


def run(program: str, folder: Path, **environ: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=folder,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- names


def test_two_functions_can_not_have_one_name(app: TaskQ) -> None:
    app.task(name="feed.add")(add)
    with pytest.raises(ConfigError, match=r"two tasks 'feed\.add': .*test_app\.py:\d+ and .*test_app\.py:\d+"):
        app.task(name="feed.add")(lambda a: a)
    with pytest.raises(ConfigError, match="two tasks"):
        app.task(name="feed.add")(add)


def test_a_task_and_an_event_can_not_have_one_name(app: TaskQ) -> None:
    app.task(name="x")(add)
    app.event("y")
    with pytest.raises(ConfigError, match="a task has this name"):
        app.event("x")
    with pytest.raises(ConfigError, match="an event has this name"):
        app.task(name="y")(add)
    assert (list(app.tasks), list(app.events)) == (["x"], ["y"])


def test_apps_share_no_names(app: TaskQ) -> None:
    TaskQ("other", broker="memory:").task(name="x")(add)

    assert app.task(name="x")(add).app is app


def test_an_event_is_the_same_wherever_it_is_declared(app: TaskQ) -> None:
    assert app.event("post.created", topic="posts") is app.event("post.created", topic="posts")
    for topic in (None, "other"):
        with pytest.raises(ConfigError, match="declared twice"):
            app.event("post.created", topic=topic)


@pytest.mark.parametrize(("name", "options"), [("", {}), ("a\n", {}), ("e", {"topic": "a b"}), ("e", {"topc": "t"})])
def test_a_malformed_event_is_refused(app: TaskQ, name: str, options: Any) -> None:
    with pytest.raises(ConfigError):
        app.event(name, **options)
    assert not app.events


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    default_app_before = dict(default_app.tasks), dict(default_app.events)
    yield tmp_path / "reloaded_tasks.py"
    sys.modules.pop("reloaded_tasks", None)
    default_app._tasks, default_app._events = default_app_before


RELOADED = """
from taskq import event, task
@task
def f(a: int) -> int: return {n}
@event("reloaded").subscribe
def g(a: int) -> int: return {n}
"""


def test_a_module_may_be_reloaded(module: Path) -> None:
    module.write_text(RELOADED.format(n=1))
    tasks = importlib.import_module("reloaded_tasks")
    assert default_app.tasks["reloaded_tasks.f"](0) == 1

    module.write_text("\n\n" + RELOADED.format(n=22))
    importlib.reload(tasks)
    assert default_app.tasks["reloaded_tasks.f"](0) == 22
    assert [handler(0) for handler in default_app.events["reloaded"].handlers] == [22]

    del sys.modules["reloaded_tasks"]
    importlib.import_module("reloaded_tasks")
    assert default_app.tasks["reloaded_tasks.f"].fn.__globals__ is vars(sys.modules["reloaded_tasks"])


def test_a_module_that_defines_a_name_twice_is_refused(module: Path) -> None:
    module.write_text(RELOADED.format(n=1) + "@task\ndef f(a: int) -> int: ...\n")

    with pytest.raises(ConfigError, match=r"two tasks 'reloaded_tasks\.f'"):
        importlib.import_module("reloaded_tasks")


def test_a_function_typed_at_a_prompt_may_be_typed_again(tmp_path: Path) -> None:
    definition = "from taskq import task\n@task\ndef f(): ...\n\n"

    done = subprocess.run(
        [sys.executable, "-i"],
        input=definition * 2 + "print(f.name)\n",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.strip() == "__main__.f", done.stderr


# --- groups


def test_a_group_runs_its_tasks_and_its_handlers_of_events(app: TaskQ) -> None:
    created = app.event("post.created", topic="posts")
    fan_out = app.task(name="fan_out", topic="feed", group="feed")(add)
    one, other = (created.subscribe(group="feed", name=name)(add) for name in ("one", "other"))
    index = created.subscribe(group="search", name="index")(add)

    assert app.groups() == ("feed", "search")
    assert app.handlers("feed") == Handlers(
        "feed",
        {"fan_out": (fan_out,), "one": (one,), "other": (other,), "post.created": (one, other)},
        ("feed", "feed.retry", "posts"),
    )
    assert app.handlers("search").by_name == {"index": (index,), "post.created": (index,)}
    assert app.topics("search") == ("posts", "search.retry")


def test_an_app_knows_the_names_of_all_groups(app: TaskQ) -> None:
    app.task(name="mine", group="feed")(add)
    app.event("post.created")

    assert app.knows("mine")
    assert app.knows("post.created")
    assert not app.knows("yours")


def test_without_group_and_topic_the_apps_defaults_count(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\ndefault_group = 'g'\ndefault_topic = 't'\n")
    app = TaskQ("test", settings=load_settings(cwd=tmp_path, environ={}))
    task, event = app.task(add), app.event("e")

    assert (task.group, task.topic, event.topic) == ("g", "t", "t")
    assert app.topics("g") == ("g.retry", "t")


@pytest.mark.parametrize("topic", ["feed.retry", "search.retry"])
def test_no_group_works_on_topics_for_what_has_failed(topic: str) -> None:
    with TaskQ("test", settings=load_settings(broker="memory:", default_topic=topic, environ={})) as app:
        app.task(group="feed")(add)
        app.task(group="search", topic="search", name="find")(add)
        with pytest.raises(ConfigError, match=f"tasks on the topic '{topic}', which is a group's own"):
            app.handlers("feed")
        assert app.topics("search") == ("search", "search.retry")


def test_a_group_without_a_task_is_an_error_that_lists_those_there_are(app: TaskQ) -> None:
    with pytest.raises(ConfigError, match="the app has no tasks"):
        app.handlers("feed")
    app.task(group="feed")(add)
    with pytest.raises(ConfigError, match="did you mean feed"):
        app.handlers("fed")
    with pytest.raises(ConfigError, match="there are: feed"):
        app.topics("search")


def test_a_task_that_can_not_be_decoded_stops_the_worker_before_it_starts(app: TaskQ) -> None:
    @app.task(group="odd")
    def odd(event: threading.Event) -> None: ...

    app.task(name="pickled", group="pickled", serializer="cloudpickle")(add)
    app.task(name="fine", group="fine")(add)
    with pytest.raises(ConfigError, match="parameter 'event'"):
        app.handlers("odd")
    with pytest.raises(ConfigError, match="TASKQ_SECRET"):
        app.handlers("pickled")
    assert "fine" in app.handlers("fine").by_name


# --- settings and the broker


def test_the_default_app_is_made_from_configuration_when_first_used(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.taskq]\nbroker = 'log'\ndefault_topic = 'feed'\n")
    below = tmp_path / "below"
    below.mkdir()
    program = """
        from taskq import task
        from taskq.app import default_app
        @task
        def f(a: int): ...
        f.delay(1)
        print(default_app.broker.url, f.topic, default_app.broker.admin().topics())
    """
    assert run(program, below) == f"{(tmp_path / 'log').as_uri()} feed ['feed']\n"


def test_malformed_configuration_is_no_concern_of_an_import(tmp_path: Path) -> None:
    program = """
        from taskq import task
        from taskq.errors import ConfigError
        @task
        def f(a: int): ...
        assert f(1) is None
        try:
            f.delay(1)
        except ConfigError as error:
            print(error)
    """
    assert "TASKQ_CONCURRENCY" in run(program, tmp_path, TASKQ_CONCURRENCY="many")


def test_an_argument_is_stronger_than_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKQ_BROKER", str(tmp_path / "variable"))

    assert TaskQ("test", broker=tmp_path / "argument").settings.broker == (tmp_path / "argument").as_uri()
    assert TaskQ("test").settings.broker == (tmp_path / "variable").as_uri()


def test_configuring_is_stronger_than_arguments_until_the_broker_is_open(tmp_path: Path) -> None:
    app = TaskQ("test", broker=tmp_path / "argument")
    assert app.settings.concurrency == 16
    app.configure(broker="memory:", concurrency=3, durability=None)

    assert (app.settings.broker, app.settings.concurrency) == ("memory:", 3)
    with app:
        assert app.broker.url == "memory:"
        with pytest.raises(ConfigError, match="opened"):
            app.configure(concurrency=4)


def test_configuring_something_unknown_is_refused(app: TaskQ) -> None:
    with pytest.raises(ConfigError, match="did you mean broker"):
        app.configure(brokr="memory:")


def test_the_broker_is_opened_once_whoever_comes_first(app: TaskQ, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "taskq")
    task, found, ready = app.task(add), set(), threading.Barrier(8)

    def first() -> None:
        ready.wait(10)
        task.delay(1)
        found.add(id(app.broker))

    threads = [threading.Thread(target=first) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 1
    assert [record.getMessage() for record in caplog.records if record.name == "taskq"] == ["broker memory:"]


def test_a_closed_app_opens_again_when_used(tmp_path: Path) -> None:
    app = TaskQ("test", broker=tmp_path / "log")
    task = app.task(add)
    with app:
        task.delay(1)
    app.close()
    task.delay(2)
    with app:
        reader = app.broker.reader()
        read = [record for number in range(8) for record in reader.read(TopicPartition("default", number), 0)]
    assert sorted(task.decode_args(decode_envelope(record.value))[0] for record in read) == [(1,), (2,)]


def test_a_forked_child_opens_the_broker_for_itself(tmp_path: Path) -> None:
    program = """
        import os, sys
        from taskq import TaskQ
        app = TaskQ("test", broker="log")
        @app.task
        def f(who: str, n: int): ...
        f.delay("parent", 0)
        parents = app.broker
        child = os.fork()
        if child == 0:
            assert app.opened is None
            for n in range(50):
                f.delay("child", n)
            assert app.broker is not parents
            app.close()
            os._exit(0)
        for n in range(1, 50):
            f.delay("parent", n)
        assert os.waitpid(child, 0)[1] == 0
        assert app.broker is parents
        f.delay("parent", 50)
        from taskq.broker.port import TopicPartition
        from taskq.message import decode_envelope
        reader = app.broker.reader()
        read = [decode_envelope(r.value) for p in range(8) for r in reader.read(TopicPartition("default", p), 0)]
        sent = sorted(f.decode_args(envelope)[0] for envelope in read)
        assert sent == sorted([("child", n) for n in range(50)] + [("parent", n) for n in range(51)]), sent
        assert len({envelope.id for envelope in read}) == 101
        app.close()
    """
    run(program, tmp_path)


def test_a_fork_while_another_thread_opens_the_broker_does_not_lock_the_child(tmp_path: Path) -> None:
    program = """
        import os, threading
        from taskq import TaskQ
        app = TaskQ("test", broker="log")
        @app.task
        def f(n: int): ...
        held, release = threading.Event(), threading.Event()
        def hold():
            with app._lock:
                held.set()
                release.wait(20)
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(20)
        child = os.fork()
        if child == 0:
            f.delay(1)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        release.set()
        thread.join()
    """
    run(program, tmp_path)


# --- the package


def test_the_package_exports_what_it_says() -> None:
    assert all(hasattr(taskq, name) for name in taskq.__all__)
    assert taskq.task.__self__ is default_app  # type: ignore[attr-defined]
    assert app_module is sys.modules["taskq.app"]


@pytest.mark.alone
def test_importing_the_package_takes_less_than_150_ms(tmp_path: Path) -> None:
    # Of the processor's time, not of the clock's, which others' work makes longer.
    program = "import time; start = time.process_time(); import taskq; print(time.process_time() - start)"
    environ = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}

    times = [float(run(program, tmp_path, **environ)) for _ in range(5)]
    assert min(times[1:]) < 0.150
