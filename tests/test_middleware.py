"""What is around publishing: every way to publish, headers, errors, order. Around running: tests/worker/."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from taskq import Invocation, Middleware, Publication, TaskQ
from taskq.broker.port import Record, TopicPartition
from taskq.context import running
from taskq.errors import ArgumentsError, BrokerUnavailable, ConfigError, TaskqError
from taskq.routes import Route

Publish = Callable[[Publication], tuple[str, ...]]


class Tracing(Middleware):
    def __init__(self, name: str = "tracing") -> None:
        self.name = name
        self.said: list[str] = []
        self.seen: list[Publication] = []

    def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
        self.seen.append(publication)
        before = publication.headers.get("trace", "")
        assert isinstance(before, str)
        ids = call_next(publication.with_headers({"trace": f"{before}/{self.name}"}))
        self.said += ids
        return ids


class Refusing(Middleware):
    def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
        raise PermissionError(f"no {publication.name}")


class Forgetful(Middleware):
    def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
        return ()


@pytest.fixture
def app() -> Iterator[TaskQ]:
    with TaskQ("test", broker="memory:") as app:
        yield app


def records(app: TaskQ, topic: str = "default") -> list[Record]:
    if topic not in app.broker.admin().topics():
        return []
    reader = app.broker.reader()
    return [
        record
        for number in range(app.broker.admin().partitions(topic))
        for record in reader.read(TopicPartition(topic, number), 0)
    ]


def test_every_way_to_publish_goes_through_it(app: TaskQ) -> None:
    tracing = Tracing()
    app.add_middleware(tracing)

    @app.task
    def add(a: int, b: int = 0) -> None: ...

    happened = app.event("happened")
    ids = [add.delay(1, b=2).id]
    ids += [anyio.run(add.adelay, 3).id]
    ids += [handle.id for handle in add.map([(4,), (5, 6)])]
    ids += [handle.id for handle in anyio.run(add.amap, [(7,)])]
    ids += [add.options(headers={"trace": "root", "raw": b"\xff"}).delay(8).id]
    ids += [add.apply_async((9,)).id]
    ids += [happened.publish(number=10).id]
    ids += [anyio.run(partial(happened.apublish, number=11)).id]
    assert tracing.said == ids
    assert [publication.calls for publication in tracing.seen] == [
        (((1,), {"b": 2}),),
        (((3,), {}),),
        (((4,), {}), ((5, 6), {})),
        (((7,), {}),),
        (((8,), {}),),
        (((9,), {}),),
        (((), {"number": 10}),),
        (((), {"number": 11}),),
    ]
    assert [publication.name for publication in tracing.seen] == [add.name] * 6 + ["happened"] * 2
    headers = [dict(record.headers) for record in records(app)]
    assert headers.count({"trace": b"/tracing"}) == 8
    assert headers.count({"trace": b"root/tracing", "raw": b"\xff"}) == 1


def test_the_first_that_was_added_is_the_outermost(app: TaskQ) -> None:
    app.add_middleware(Tracing("outer"), Tracing("middle"))
    app.add_middleware(Tracing("inner"))

    @app.task
    def nothing() -> None: ...

    nothing.delay()
    assert [dict(record.headers) for record in records(app)] == [{"trace": b"/outer/middle/inner"}]


def test_delays_and_expiry_keep_working(app: TaskQ) -> None:
    app.add_middleware(Tracing())

    @app.task
    def nothing() -> None: ...

    nothing.options(expires=60).delay()
    [record] = records(app)
    assert {name for name, _ in record.headers} == {"trace", "taskq-expires"}


@pytest.mark.parametrize("how", ["delay", "adelay", "map", "event"])
def test_its_error_is_the_calls_and_nothing_is_published(app: TaskQ, how: str) -> None:
    app.add_middleware(Refusing())

    @app.task(name="add")
    def add(a: int) -> None: ...

    ways: dict[str, Callable[[], object]] = {
        "delay": lambda: add.delay(1),
        "adelay": lambda: anyio.run(add.adelay, 1),
        "map": lambda: add.map([(1,)]),
        "event": lambda: app.event("add.done").publish(),
    }
    with pytest.raises(PermissionError, match="no add"):
        ways[how]()
    assert records(app) == []


def test_the_errors_of_publishing_go_through_it(app: TaskQ) -> None:
    caught: list[BaseException] = []

    class Catching(Middleware):
        def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
            try:
                return call_next(publication)
            except ArgumentsError as error:
                caught.append(error)
                raise

    app.add_middleware(Catching())

    @app.task
    def add(a: int) -> None: ...

    with pytest.raises(ArgumentsError):
        add.delay("x")  # type: ignore[arg-type]
    assert len(caught) == 1


def test_one_that_does_not_publish_must_say_why(app: TaskQ) -> None:
    app.add_middleware(Forgetful())

    @app.task
    def nothing() -> None: ...

    with pytest.raises(TaskqError, match="neither published it nor raised"):
        nothing.delay()


def test_only_headers_may_change(app: TaskQ) -> None:
    class Redirecting(Middleware):
        def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
            return call_next(Publication("other", publication.topic, publication.calls, publication.headers))

    class Forging(Middleware):
        def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
            return call_next(publication.with_headers({"taskq-trip": "{}"}))

    for middleware, message in ((Redirecting(), "its headers and nothing else"), (Forging(), "taskq's own")):
        with TaskQ("other", broker="memory:") as other:
            other.add_middleware(middleware)
            nothing = other.task(name="nothing")(lambda: None)
            with pytest.raises(ConfigError, match=message):
                nothing.delay()


class Stubborn(Middleware):
    """Tries again what has failed, and what has not."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
        for _ in range(3):
            try:
                call_next(publication)
            except BrokerUnavailable as error:
                self.failed.append(str(error))
        return ()


@pytest.mark.parametrize("how", ["delay", "map"])
def test_what_is_published_is_not_published_again(app: TaskQ, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stubborn, send, send_many = Stubborn(), app.producer.send, app.producer.send_many

    def fail_once(real: Callable[..., object], *args: object) -> object:
        if not stubborn.failed:
            raise BrokerUnavailable("gone")
        return real(*args)

    monkeypatch.setattr(app.producer, "send", partial(fail_once, send))
    monkeypatch.setattr(app.producer, "send_many", partial(fail_once, send_many))
    app.add_middleware(Tracing(), stubborn)

    @app.task
    def add(a: int) -> None: ...

    with pytest.raises(TaskqError, match="it is published, and a middleware called call_next again"):
        add.delay(1) if how == "delay" else add.map([(1,)])
    assert stubborn.failed == ["gone"]
    assert len(records(app)) == 1


def test_what_is_to_be_published_is_there_to_look_at(app: TaskQ) -> None:
    def change_argument(publication: Publication) -> None:
        publication.calls[0][1]["b"] = 99  # type: ignore[index]

    def change_header(publication: Publication) -> None:
        publication.headers["trace"] = "x"  # type: ignore[index]

    changes: list[Callable[[Publication], None]] = []

    class Changing(Middleware):
        def publish(self, publication: Publication, call_next: Publish, /) -> tuple[str, ...]:
            changes[-1](publication)
            return call_next(publication)

    app.add_middleware(Changing())

    @app.task
    def add(a: int, b: int = 0) -> None: ...

    for change in (change_argument, change_header):
        changes.append(change)
        with pytest.raises(TypeError, match="does not support item assignment"):
            add.delay(1, b=2)
    assert records(app) == []


def test_where_nobody_is_around_publishing_the_route_is_the_plain_one(app: TaskQ) -> None:
    class Running(Middleware):
        def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any:
            return call_next(invocation)

    app.add_middleware(Running(), Middleware())

    @app.task
    def nothing() -> None: ...

    nothing.delay()
    assert type(nothing._route) is Route


def test_what_comes_too_late_or_is_none_is_refused(app: TaskQ) -> None:
    class Wrong(Middleware):
        async def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any: ...

    class WrongToo(Middleware):
        def arun(self, invocation: Invocation, call_next: Callable[[Invocation], Awaitable[Any]], /) -> Any: ...

    for wrong, message in (
        (Tracing, "give an object of it"),
        (print, "derive it"),
        (Wrong(), r"Wrong\.run must be def"),
        (WrongToo(), "WrongToo.arun must be async def"),
    ):
        with pytest.raises(ConfigError, match=message):
            app.add_middleware(wrong)  # type: ignore[arg-type]

    @app.task
    def nothing() -> None: ...

    nothing.delay()
    with pytest.raises(ConfigError, match="can't be given middleware any more"):
        app.add_middleware(Tracing())


def test_a_wrapped_task_runs_with_what_is_around_it_wherever_current_tells_of_it(app: TaskQ) -> None:
    seen: list[Invocation] = []

    class Doubling(Middleware):
        def run(self, invocation: Invocation, call_next: Callable[[Invocation], Any], /) -> Any:
            seen.append(invocation)
            return call_next(invocation.with_arguments(2 * invocation.args[0], b=1)) + 1000

    app.add_middleware(Doubling())

    @app.task
    def add(a: int, b: int = 0) -> int:
        return a + b

    @app.task
    async def plain() -> None: ...

    assert app.wrapped(plain) is plain.fn
    assert app.wrapped(add).__name__ == "add"
    with running(add, id="7", headers={"x": "y"}, attempt=3, delivery=2):
        assert app.wrapped(add)(10) == 1021
    assert add(10) == 10
    [invocation] = seen
    assert (invocation.task, invocation.id, invocation.args, invocation.kwargs) == (add, "7", (10,), {})
    assert (invocation.headers, invocation.attempt, invocation.delivery) == ({"x": "y"}, 3, 2)
    with pytest.raises(AttributeError):
        invocation.id = "8"  # type: ignore[misc]
