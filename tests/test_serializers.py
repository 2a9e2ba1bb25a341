"""A call goes in, the same call comes out; and nothing that is not signed is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from taskq.arguments import Parameters
from taskq.errors import ArgumentsError, ConfigError, SerializationError, SignatureError
from taskq.message import EMPTY_MAP, decode_envelope, encode_msgpack, new_id, parse_id
from taskq.serializers import SERIALIZERS, Serializer, Signer, encode_event, make_serializer

OLD, NEW, STRANGE = (name.ljust(16).encode() for name in ("old", "new", "strange"))


def plain(author_id: int, post_id: int) -> None: ...


def with_default(author_id: int, post_id: int = 0, *, loud: bool = False) -> None: ...


def with_rest(author_id: int, *rest: int, **more: int) -> None: ...


def untyped(author_id, post_id): ...


def nothing() -> None: ...


def serializer(fn: Callable[..., Any], kind: str = "msgpack", secrets: tuple[bytes, ...] = (NEW,)) -> Serializer:
    return make_serializer(kind, Parameters("feed.fan_out", fn), secrets)


def decode(it: Serializer, value: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return it.decode(decode_envelope(value))


@pytest.mark.parametrize("kind", SERIALIZERS)
@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (plain, (1, 2), {}),
        (plain, (1,), {"post_id": 2}),
        (plain, (), {"post_id": 2, "author_id": 1}),
        (with_default, (1,), {}),
        (with_default, (1, 2), {}),
        (with_default, (1,), {"loud": True}),
        (with_rest, tuple(range(40)), {}),
        (with_rest, (1, 2), {"x": 3}),
        (untyped, (1, "x"), {}),
        (nothing, (), {}),
    ],
)
@pytest.mark.parametrize("ident", [None, parse_id("mine"), parse_id("0192f0c1-0000-7000-8000-000000000000")])
def test_a_call_arrives_as_it_was_made(
    kind: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], ident: bytes | str | None
) -> None:
    it = serializer(fn, kind)

    given_id, value = it.encode(args, kwargs, ident)
    envelope = decode_envelope(value)
    assert it.decode(envelope) == (args, kwargs)
    assert parse_id(envelope.id) == given_id if isinstance(envelope.id, str) else envelope.id == given_id
    assert ident in (None, given_id)
    assert envelope.name == "feed.fan_out"


@pytest.mark.parametrize("kind", SERIALIZERS)
@pytest.mark.parametrize("args", [(), (1,), (1, 2, 3)])
def test_a_call_that_does_not_fit_fails_before_it_is_a_message(kind: str, args: tuple[Any, ...]) -> None:
    with pytest.raises(ArgumentsError, match=r"^feed\.fan_out: "):
        serializer(plain, kind).encode(args, {}, None)


@pytest.mark.parametrize("kind", ["msgpack", "json"])
@pytest.mark.parametrize(("args", "kwargs"), [((1, "x"), {}), ((1,), {"post_id": "x"})])
def test_an_argument_of_another_type_fails_before_it_is_a_message(
    kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(ArgumentsError, match="parameter 'post_id': Expected `int`, got `str`"):
        serializer(plain, kind).encode(args, kwargs, None)


def test_either_format_is_read_whatever_the_task_writes() -> None:
    for kind in ("msgpack", "json"):
        it = serializer(with_default, kind)
        assert decode(it, b'{"task": "feed.fan_out", "args": [1, 2], "kwargs": {"loud": true}}') == (
            (1, 2),
            {"loud": True},
        )
        assert decode(it, msgspec.msgpack.encode({"task": "feed.fan_out", "args": [1, 2]})) == ((1, 2), {})
        assert decode(it, msgspec.msgpack.encode({"task": "feed.fan_out", "kwargs": {"author_id": 1}})) == (
            (),
            {"author_id": 1},
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"args": [1, "x"]},
        {"args": [1]},
        {"args": [1, 2, 3]},
        {"args": 5},
        {"args": {"author_id": 1}},
        {"args": [1], "kwargs": {"author_id": 1}},
        {"args": [1], "kwargs": {"posst_id": 1}},
        {"kwargs": {"author_id": 1, "post_id": 2, "third": 3}},
        {"kwargs": {"author_id": 1, "post_id": "2"}},
        {"kwargs": {"author_id": 1}},
        {"kwargs": [1, 2]},
        {},
    ],
)
def test_foreign_arguments_that_do_not_fit_are_errors(fields: dict[str, Any]) -> None:
    for encode in (msgspec.msgpack.encode, msgspec.json.encode):
        with pytest.raises(ArgumentsError, match=r"^feed\.fan_out: "):
            decode(serializer(plain), encode({"task": "feed.fan_out", **fields}))


@given(st.binary(max_size=12), st.binary(max_size=12))
def test_no_arguments_raise_anything_but_an_arguments_error(args: bytes, kwargs: bytes) -> None:
    it = serializer(with_default)
    try:
        values, named = decode(it, encode_msgpack("task", "feed.fan_out", new_id(), Raw(args), Raw(kwargs)))
    except (ArgumentsError, SerializationError):
        return
    with_default(*values, **named)


def test_an_event_gives_each_handler_the_fields_it_has_parameters_for() -> None:
    _, value = encode_event("post.created", {"author_id": 1, "post_id": 2, "title": "x"}, None, [])

    assert decode(serializer(plain), value) == ((), {"author_id": 1, "post_id": 2})
    assert decode(serializer(nothing), value) == ((), {})
    with pytest.raises(ArgumentsError, match="'more'"):
        decode(serializer(with_rest), value)


def test_an_event_that_a_known_handler_can_not_read_is_not_published() -> None:
    handler = make_serializer("msgpack", Parameters("feed.notify", plain), ()).decode

    encode_event("post.created", {"author_id": 1, "post_id": 2, "more": 3}, None, [handler])
    with pytest.raises(ArgumentsError, match=r"^feed\.notify: missing a required argument: 'post_id'"):
        encode_event("post.created", {"author_id": 1}, None, [handler])
    with pytest.raises(ArgumentsError, match=r"^post\.created: parameter 'odd'"):
        encode_event("post.created", {"odd": object()}, None, [])


# --- cloudpickle


def test_cloudpickle_takes_what_the_others_can_not() -> None:
    factor = 3
    _, value = serializer(untyped, "cloudpickle").encode((lambda n: n * factor, {1, 2j}), {}, None)

    (multiply, numbers), _ = decode(serializer(untyped, "cloudpickle"), value)
    assert multiply(2) == 6
    assert numbers == {1, 2j}


def test_cloudpickle_without_a_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="TASKQ_SECRET"):
        serializer(plain, "cloudpickle", ())


def test_what_can_not_be_pickled_is_an_error() -> None:
    with pytest.raises(ArgumentsError, match="can't be pickled"):
        serializer(untyped, "cloudpickle").encode((1, (n for n in "ab")), {}, None)


def test_secrets_rotate() -> None:
    _, by_old = serializer(plain, "cloudpickle", (OLD,)).encode((1, 2), {}, None)
    _, by_new = serializer(plain, "cloudpickle", (NEW, OLD)).encode((1, 2), {}, None)

    assert decode(serializer(plain, "cloudpickle", (NEW, OLD)), by_old) == ((1, 2), {})
    assert decode(serializer(plain, "cloudpickle", (NEW,)), by_new) == ((1, 2), {})
    with pytest.raises(SignatureError, match="not in TASKQ_SECRET"):
        decode(serializer(plain, "cloudpickle", (NEW,)), by_old)


class Trap:
    """Unpickling one creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def test_what_is_not_signed_by_us_is_never_unpickled(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickled = pickle.dumps(((Trap(sprung), 2), {}))
    ident, args = new_id(), Raw(msgspec.msgpack.encode(pickled))
    signer = Signer([NEW])
    right = signer.sign("feed.fan_out", ident, pickled)
    wrong = [
        None,
        b"",
        b"\x00" * 40,
        right[:-1],
        right + b"\x00",
        right[:8] + b"\x00" * 32,
        right[:-1] + bytes([right[-1] ^ 1]),
        Signer([STRANGE]).sign("feed.fan_out", ident, pickled),
        right[:8] + Signer([STRANGE]).sign("feed.fan_out", ident, pickled)[8:],
        signer.sign("feed.other", ident, pickled),
        signer.sign("feed.fan_out", new_id(), pickled),
        signer.sign("feed.fan_out", str(ident), pickled),
        signer.sign("feed.fan_out", ident, pickled + b"\x00"),
    ]
    it = serializer(untyped, "cloudpickle")
    for signature in wrong:
        with pytest.raises(SignatureError, match="sign"):
            decode(it, encode_msgpack("task", "feed.fan_out", ident, args, EMPTY_MAP, signature))
    kwargs = Raw(msgspec.msgpack.encode({"a": 1}))
    with pytest.raises(SignatureError):
        decode(it, encode_msgpack("task", "feed.fan_out", ident, args, kwargs, right))
    with pytest.raises(SignatureError):
        decode(it, encode_msgpack("event", "feed.fan_out", ident, args, EMPTY_MAP, right))
    for typed in ("msgpack", "json"):
        with pytest.raises(ArgumentsError):
            decode(serializer(untyped, typed), encode_msgpack("task", "feed.fan_out", ident, args, EMPTY_MAP, right))
    assert not sprung.exists()

    decode(it, encode_msgpack("task", "feed.fan_out", ident, args, EMPTY_MAP, right))
    assert sprung.exists(), "the trap does not work, so this test showed nothing"


def test_a_plain_message_for_a_pickling_task_is_not_signed() -> None:
    it = serializer(plain, "cloudpickle")
    with pytest.raises(SignatureError):
        decode(it, b'{"task": "feed.fan_out", "args": [1, 2]}')
    with pytest.raises(SignatureError):
        decode(it, serializer(plain).encode((1, 2), {}, None)[1])


@pytest.mark.parametrize(
    "pickled",
    [b"", b"not a pickle", pickle.dumps(5), pickle.dumps((1, 2)), b"cnowhere\nnothing\n."],
)
def test_a_signed_message_that_can_not_be_unpickled_is_an_error(pickled: bytes) -> None:
    ident = new_id()
    signature = Signer([NEW]).sign("feed.fan_out", ident, pickled)
    value = encode_msgpack("task", "feed.fan_out", ident, Raw(msgspec.msgpack.encode(pickled)), EMPTY_MAP, signature)

    with pytest.raises((SerializationError, ArgumentsError), match=r"^feed\.fan_out: "):
        decode(serializer(plain, "cloudpickle"), value)


def test_a_signed_message_whose_arguments_are_not_bytes_is_an_error() -> None:
    value = encode_msgpack("task", "feed.fan_out", new_id(), Raw(b"\x91\x01"), EMPTY_MAP, b"\x00" * 40)

    with pytest.raises(SerializationError, match="args"):
        decode(serializer(plain, "cloudpickle"), value)
