"""What a record's value says, whoever wrote it, and what invocations are called."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from taskq.errors import ConfigError, SerializationError
from taskq.message import (
    EMPTY_ARRAY,
    EMPTY_MAP,
    MSGPACK_ARGS,
    JsonEnvelope,
    decode_envelope,
    decode_headers,
    derive_id,
    encode_headers,
    encode_json,
    encode_msgpack,
    format_id,
    msgpack_head,
    new_id,
    parse_id,
)

IDENT = bytes(range(16))
ARGS = Raw(msgspec.msgpack.encode([1, 2]))


def test_a_value_reads_as_it_was_written() -> None:
    kwargs = Raw(msgspec.msgpack.encode({"a": 1}))

    envelope = decode_envelope(encode_msgpack("task", "feed.fan_out", IDENT, ARGS, kwargs, b"signed"))
    assert (envelope.name, envelope.event, envelope.id) == ("feed.fan_out", "", IDENT)
    assert bytes(envelope.args) == bytes(ARGS)
    assert bytes(envelope.kwargs) == bytes(kwargs)
    assert envelope.signature == b"signed"


def test_the_quick_way_writes_the_same_value() -> None:
    quick = msgpack_head("task", "feed.fan_out") + IDENT + MSGPACK_ARGS + bytes(ARGS)

    assert quick == encode_msgpack("task", "feed.fan_out", IDENT, ARGS)


def test_an_event_is_named_in_the_same_place_as_a_task() -> None:
    envelope = decode_envelope(encode_msgpack("event", "post.created", IDENT, EMPTY_ARRAY))

    assert (envelope.name, envelope.event) == ("post.created", "post.created")
    assert envelope.kwargs is EMPTY_MAP


def test_a_foreign_json_object_is_an_invocation() -> None:
    envelope = decode_envelope(b'{"task": "feed.fan_out", "args": [1, 2]}')

    assert isinstance(envelope, JsonEnvelope)
    assert (envelope.name, envelope.id) == ("feed.fan_out", None)
    assert bytes(envelope.args) == b"[1, 2]"
    assert bytes(envelope.kwargs) == b"{}"


def test_json_has_its_id_as_text_and_it_is_the_same_id() -> None:
    value = encode_json("task", "t", IDENT, Raw(b"[1]"))

    assert msgspec.json.decode(value) == {"task": "t", "id": str(UUID(bytes=IDENT)), "args": [1]}
    assert decode_envelope(value).id == IDENT


@pytest.mark.parametrize("ident", ["mine", "x" * 36, str(UUID(bytes=IDENT)).upper(), f"{{{UUID(bytes=IDENT)}}}"])
def test_other_text_stays_the_id_that_it_is(ident: str) -> None:
    assert decode_envelope(encode_json("task", "t", ident, Raw(b"[1]"))).id == ident


def test_a_memoryview_reads_as_bytes_do() -> None:
    assert decode_envelope(memoryview(encode_msgpack("task", "t", "mine", ARGS))).id == "mine"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"hello",
        b"{",
        b"{}",
        b'{"args": [1]}',
        b'{"task": ""}',
        b'{"task": 1}',
        b'{"task": "t", "event": "e"}',
        b'{"task": "t", "id": ""}',
        b'{"task": "t", "id": 5}',
        b'{"task": "t", "id": "' + b"x" * 256 + b'"}',
        b'{"task": "t", "arg": [1]}',
        b'{"task": "t"} {"task": "t"}',
        b"[" * 100_000,
        msgspec.msgpack.encode(["t"]),
        msgspec.msgpack.encode({"task": "t", "id": b"short"}),
        msgspec.msgpack.encode({"task": "t", "args": [1]})[:-1],
        msgspec.msgpack.encode({"task": "t"}) + b"\x00",
        b"\x81\xa4task\xa1\xff",
        b"\x82\xa4task\xa1t\xa4args" + b"\x91" * 100_000 + b"\x90",
    ],
)
def test_what_is_not_an_invocation_says_so(value: bytes | None) -> None:
    with pytest.raises(SerializationError, match=r"invocation|value names"):
        decode_envelope(value)


@given(st.binary() | st.binary().map(lambda junk: b"{" + junk) | st.binary().map(lambda junk: b"\x82\xa4task" + junk))
def test_no_bytes_raise_anything_else(value: bytes) -> None:
    try:
        envelope = decode_envelope(value)
    except SerializationError:
        return
    assert envelope.name


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(SerializationError, match="arguments"):
        decode_envelope(b'{"task": "t", "arguments": [1]}')


# --- ids


def test_an_id_is_a_uuid7_of_now() -> None:
    before_ms = time.time_ns() // 1_000_000
    ident = new_id()
    after_ms = time.time_ns() // 1_000_000

    uuid = UUID(bytes=ident)
    assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
    assert before_ms <= int.from_bytes(ident[:6], "big") <= after_ms


def test_ids_are_never_the_same_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(10_000)]

    assert len(set(ids)) == len(ids)
    assert ids == sorted(ids)


def test_a_fork_does_not_repeat_its_parents_ids() -> None:
    program = """if True:
        import os
        from taskq.message import new_id
        reader, writer = os.pipe()
        child = os.fork()
        low_bits = [new_id()[6:].hex() for _ in range(100)]
        if child == 0:
            os.write(writer, " ".join(low_bits).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert not set(low_bits) & set(os.read(reader, 65536).decode().split())
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30, cwd=os.getcwd())


def test_an_id_somebody_chose_comes_back_as_they_wrote_it() -> None:
    for text in ["mine", "0192F0C1-0000-7000-8000-000000000000", "0192f0c1-0000-7000-8000-000000000000", "x" * 255]:
        assert format_id(parse_id(text)) == text
    uuid = UUID(bytes=IDENT)
    assert parse_id(uuid) == parse_id(str(uuid)) == IDENT


@pytest.mark.parametrize("ident", ["", "x" * 256, "\ud800", 5, None, b"mine"])
def test_an_id_that_will_not_do_is_refused(ident: object) -> None:
    with pytest.raises(ConfigError, match="id"):
        parse_id(ident)


def test_a_derived_id_is_the_same_each_time_and_no_others() -> None:
    ident = derive_id("feed", 0, 7)

    assert ident == derive_id("feed", 0, 7)
    assert len({ident, derive_id("feed", 0, 8), derive_id("feed", 1, 7), derive_id("posts", 0, 7)}) == 4
    assert UUID(bytes=ident).version == 8


# --- headers


def test_headers_travel_as_utf8() -> None:
    headers = encode_headers({"trace": "a\u00e9", "raw": b"\xff"})

    assert headers == (("trace", b"a\xc3\xa9"), ("raw", b"\xff"))
    assert decode_headers(headers) == {"trace": "a\u00e9", "raw": "\ufffd"}


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"": "a"}, {"taskq-attempt": "1"}, [("a", "b")], "ab"])
def test_headers_that_will_not_do_are_refused(headers: object) -> None:
    with pytest.raises(ConfigError, match="header"):
        encode_headers(headers)
