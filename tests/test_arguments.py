"""Which calls fit a task, and what arguments become on their way through bytes."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Raw, Struct

from taskq.arguments import JSON, MSGPACK, Codec, Format, Parameters
from taskq.errors import ArgumentsError, ConfigError
from taskq.message import EMPTY_ARRAY, EMPTY_MAP

if TYPE_CHECKING:
    from nowhere import OnlyForTypeCheckers  # type: ignore[import-not-found]


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclass
class Point:
    x: int
    y: float


@attrs.frozen
class Author:
    name: str
    joined: date


class Post(Struct):
    id: UUID
    author: Author
    tags: set[str]
    price: Decimal
    colour: Colour = Colour.RED


class Options(TypedDict, total=False):
    loud: bool


class Pair(NamedTuple):
    left: int
    right: int


class Thing:
    pass


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


def through(fn: Callable[..., Any], *args: Any, form: Format = MSGPACK, **kwargs: Any) -> tuple[Any, ...]:
    codec = Codec(Parameters("t", fn), form)
    values, named = codec.decode(*codec.encode(args, kwargs))
    return (*values, *([named] if named else []))


POST = Post(UUID(int=7), Author("ann", date(2020, 2, 29)), {"a"}, Decimal("1.50"))


@pytest.mark.parametrize("form", [MSGPACK, JSON], ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 2**63),
        (float, 0.5),
        (bool, True),
        (str, "\u00e9"),
        (bytes, b"\x00\xff"),
        (None, None),
        (int | None, None),
        (datetime, datetime(2024, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
        (datetime, datetime(2024, 1, 2)),  # noqa: DTZ001 - a naive one is a naive one at the other end
        (timedelta, timedelta(days=1, microseconds=3)),
        (UUID, UUID(int=1)),
        (Decimal, Decimal("0.10")),
        (Colour, Colour.RED),
        (Level, Level.HIGH),
        (Point, Point(1, 2.0)),
        (Author, Author("bo", date(1999, 12, 31))),
        (Post, POST),
        (Pair, Pair(1, 2)),
        (Options, {"loud": True}),
        (dict[str, list[Post | None]], {"x": [POST, None]}),
        (dict[int, str], {1: "a"}),
        (tuple[int, ...], (1, 2)),
        (frozenset[int], frozenset({1})),
        (Literal["a", "b"], "b"),
        (dict[str, object], {"a": [1, "b", None]}),
        (object, [1]),
        (Any, {"a": 1.5}),
    ],
    ids=str,
)
def test_an_argument_arrives_as_what_its_annotation_says(form: Format, kind: Any, value: Any) -> None:
    def fn(it: Any) -> None: ...

    fn.__annotations__["it"] = kind
    (arrived,) = through(fn, value, form=form)
    assert arrived == value
    assert type(arrived) is type(value)


def test_subclasses_of_basic_types_travel_as_what_they_are() -> None:
    def fn(a: str, b: int, c: float) -> None: ...

    arrived = through(fn, Text("x"), Whole(3), Real(0.5))
    assert arrived == ("x", 3, 0.5)
    assert [type(value) for value in arrived] == [str, int, float]


def test_without_annotations_anything_that_can_be_encoded_goes() -> None:
    def fn(a, b=2): ...

    assert through(fn, {"x": [1, None, "s"]}) == ({"x": [1, None, "s"]},)


PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(PLAIN_VALUES, st.lists(PLAIN_VALUES, max_size=3), st.dictionaries(st.text(min_size=1), PLAIN_VALUES, max_size=3))
def test_any_plain_values_arrive_unchanged(first: Any, rest: list[Any], named: dict[str, Any]) -> None:
    def fn(first: Any, /, *rest: Any, **named: Any) -> None: ...

    assert through(fn, first, *rest, **named) == (first, *rest, *([named] if named else []))


def test_every_kind_of_parameter_is_converted() -> None:
    def fn(a: int, /, b: Point, *rest: date, only: Colour, other: int = 5, **more: UUID) -> None: ...

    day = date(2024, 5, 6)
    arrived = through(fn, 1, Point(1, 2.0), day, day, only=Colour.RED, extra=UUID(int=2))
    assert arrived == (1, Point(1, 2.0), day, day, {"only": Colour.RED, "extra": UUID(int=2)})


def test_a_forward_reference_may_be_defined_later() -> None:
    parameters = Parameters("t", uses_later)

    assert parameters.type_of("it") is Later
    assert through(uses_later, Later(3)) == (Later(3),)


def uses_later(it: Later) -> OnlyForTypeCheckers: ...


class Later(Struct):
    n: int


def test_a_wrapper_has_the_parameters_of_what_it_wraps() -> None:
    @functools.wraps(uses_later)
    def wrapper(*args: Any, **kwargs: Any) -> Any: ...

    assert through(wrapper, Later(3)) == (Later(3),)


def test_an_annotation_that_is_nowhere_defined_is_an_error() -> None:
    def fn(it: OnlyForTypeCheckers) -> None: ...

    with pytest.raises(ConfigError, match="OnlyForTypeCheckers"):
        Parameters("t", fn).type_of("it")


@pytest.mark.parametrize("kind", [Thing, list[Thing], Thing | None, dict[str, tuple[Thing, int]], complex, bytes | str])
def test_a_type_that_can_not_be_converted_names_its_parameter_and_the_way_out(kind: Any) -> None:
    def fn(fine: int, odd: Any) -> None: ...

    fn.__annotations__["odd"] = kind
    with pytest.raises(ConfigError, match=r"^t: parameter 'odd': .*cloudpickle"):
        Codec(Parameters("t", fn), MSGPACK)


def test_what_json_alone_can_not_do_is_an_error_in_json() -> None:
    def fn(it: Any) -> None: ...

    fn.__annotations__["it"] = dict[tuple[int, int], int]
    assert through(fn, {(1, 2): 3}) == ({(1, 2): 3},)
    with pytest.raises(ArgumentsError, match=r"^t: parameter 'it': "):
        through(fn, {(1, 2): 3}, form=JSON)


def test_a_type_that_can_not_be_converted_is_found_inside_others() -> None:
    @dataclass
    class Holder:
        things: list[Any]

    def fn(odd: Any) -> None: ...

    Holder.__annotations__["things"] = list[Thing]
    fn.__annotations__["odd"] = Holder
    with pytest.raises(ConfigError, match="a Thing can't be made from a message"):
        Codec(Parameters("t", fn), MSGPACK)


@pytest.mark.parametrize("form", [MSGPACK, JSON], ids=lambda form: form.name)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Thing(), "Thing can't be encoded"),
        ({"a": Thing()}, "Thing can't be encoded"),
        ("\ud800", "surrogates"),
    ],
)
def test_a_value_that_can_not_be_encoded_names_its_parameter(form: Format, value: Any, reason: str) -> None:
    def fn(fine: Any, *rest: Any, odd: Any) -> None: ...

    with pytest.raises(ArgumentsError, match=rf"^t: parameter 'odd': .*{reason}"):
        through(fn, 1, 2, odd=value, form=form)


def test_whole_numbers_end_where_messagepack_ends_them() -> None:
    def fn(it: int) -> None: ...

    with pytest.raises(ArgumentsError, match=r"'it': .*ints"):
        through(fn, 2**64)


def test_a_value_that_holds_itself_is_an_error() -> None:
    def fn(it: Any) -> None: ...

    it: list[Any] = []
    it.append(it)
    with pytest.raises(ArgumentsError, match="recursion"):
        through(fn, it)


def test_not_a_number_has_no_json() -> None:
    def fn(it: float) -> None: ...

    with pytest.raises(ArgumentsError, match="'it'"):
        through(fn, float("nan"), form=JSON)


@pytest.mark.parametrize(
    ("args", "kwargs", "reason"),
    [
        ((), {}, "missing a required argument: 'a'"),
        ((1,), {}, "missing a required argument: 'k'"),
        ((1, 2, 3, 4), {"k": 1}, "too many positional arguments"),
        ((1, 2), {"k": 1, "b": 2}, "multiple values for argument 'b'"),
        ((1,), {"k": 1, "bb": 2}, "no parameter 'bb'; did you mean b?"),
        ((1,), {"k": 1, "a": 2}, "no parameter 'a'"),
        (("x",), {"k": 1}, "parameter 'a': Expected `int`, got `str`"),
        ((1,), {"k": "x"}, "parameter 'k': Expected `int`, got `str`"),
    ],
)
def test_a_call_that_does_not_fit_says_why(args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: str) -> None:
    def fn(a: int, /, b: int = 0, c: int = 0, *, k: int) -> None: ...

    with pytest.raises(ArgumentsError) as caught:
        through(fn, *args, **kwargs)
    assert str(caught.value) == f"t: {reason}" or str(caught.value).startswith(f"t: {reason}")


def test_a_near_name_is_suggested() -> None:
    def fn(author_id: int) -> None: ...

    with pytest.raises(ArgumentsError, match="no parameter 'autor_id'; did you mean author_id"):
        through(fn, autor_id=1)


def test_constraints_of_annotations_hold() -> None:
    def fn(it: Annotated[int, Meta(gt=0)]) -> None: ...

    fn.__annotations__["it"] = Annotated[int, Meta(gt=0)]
    with pytest.raises(ArgumentsError, match=r">= 1"):
        through(fn, 0)


def test_none_is_for_those_who_ask_for_it() -> None:
    def fn(it: int = None) -> None: ...  # type: ignore[assignment]  # noqa: RUF013

    with pytest.raises(ArgumentsError, match="'it'"):
        through(fn, None)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [(b"\x01", b"\x80"), (b"\x90", b"\x90"), (b"\x90", b"\x81\x01\x02"), (b"\x91\xc1", b"\x80"), (b"", b"\x80")],
)
def test_arguments_that_are_not_arguments_are_errors(args: bytes, kwargs: bytes) -> None:
    def fn(*args: int, **kwargs: int) -> None: ...

    with pytest.raises(ArgumentsError, match=r"^t: "):
        Codec(Parameters("t", fn), MSGPACK).decode(Raw(args), Raw(kwargs))


def test_leniently_names_that_the_task_does_not_have_are_left_out() -> None:
    def fn(a: int) -> None: ...

    codec = Codec(Parameters("t", fn), MSGPACK)
    kwargs = Raw(msgspec.msgpack.encode({"a": 1, "b": 2}))
    assert codec.decode(EMPTY_ARRAY, kwargs, lenient=True) == ((), {"a": 1})
    with pytest.raises(ArgumentsError, match="no parameter 'b'"):
        codec.decode(EMPTY_ARRAY, kwargs)
    with pytest.raises(ArgumentsError, match="missing a required argument: 'a'"):
        codec.decode(EMPTY_ARRAY, EMPTY_MAP, lenient=True)


def test_binding_fills_in_defaults() -> None:
    def fn(a: int, b: int = 2, *rest: int, k: int = 4) -> None: ...

    assert Parameters("t", fn).bind((1,), {}) == {"a": 1, "b": 2, "rest": (), "k": 4}
