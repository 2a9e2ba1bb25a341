"""How a call becomes a record's value and a value a call: MessagePack, JSON, or signed cloudpickle.

Encoding checks: a call that does not fit the task's parameters, in number, names or types, fails before anything is
published, because it is decoded as the worker will decode it.

cloudpickle takes what the others can't, and runs code when it is read. So it is opt-in by task, and then a value
carries a signature over everything that decides what runs:

    signature = key id (8 bytes) + HMAC-SHA256(secret; key id, task name, id, pickled arguments)

each part after its length, so that no two messages sign alike. A key's id is a hash of it: nothing to configure, and
secrets rotate by being listed, the new one first. Nothing is unpickled before its signature is verified. Whoever can
write to the log may still repeat a record; they can't change its arguments, nor give them to another task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from taskq.arguments import JSON, MSGPACK, UNENCODABLE, Arguments, Codec, Parameters, encode_one
from taskq.errors import ArgumentsError, ConfigError, SerializationError, SignatureError
from taskq.message import (
    EMPTY_ARRAY,
    EMPTY_MAP,
    MSGPACK_ARGS,
    Envelope,
    Id,
    JsonEnvelope,
    decode_envelope,
    encode_json,
    encode_msgpack,
    msgpack_head,
    new_id,
)

SERIALIZERS = ("msgpack", "json", "cloudpickle")

_SIGNED = b"taskq 1"
_KEY_ID_BYTES = 8
_MAC_BYTES = 32


class Encode(Protocol):
    """Makes an invocation's id, unless one is given, and its value. Raises ArgumentsError."""

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], ident: Id | None, /) -> tuple[Id, bytes]: ...


Decode = Callable[[Envelope], Arguments]
"""Returns an envelope's arguments for the task. Raises ArgumentsError, SignatureError or SerializationError."""


class Serializer(Protocol):
    """Encodes and decodes the calls of one task."""

    @property
    def encode(self) -> Encode: ...
    @property
    def decode(self) -> Decode: ...


def make_serializer(kind: str, parameters: Parameters, secrets: Sequence[bytes]) -> Serializer:
    """`kind` is one of `SERIALIZERS`. Raises ConfigError for annotations or secrets that won't do."""
    if kind == "cloudpickle":
        return CloudpickleSerializer(parameters, secrets)
    return TypedSerializer(parameters, json=kind == "json")


# --- MessagePack and JSON

_NOT_QUICK = (LookupError, *UNENCODABLE)
"""What the quick way raises for a call that it can't do, or that is wrong: the slow way can, or knows why."""


class TypedSerializer:
    """MessagePack and JSON: reads both, whichever a value is in, and writes one.

    `encode` and `decode` are functions with all they need bound to them, since they run for every invocation.
    """

    def __init__(self, parameters: Parameters, *, json: bool = False) -> None:
        self._parameters = parameters
        self.msgpack = Codec(parameters, MSGPACK)
        self.encode: Encode = self._encode_json if json else self._make_encode()
        self.decode: Decode = self._make_decode()

    @cached_property
    def json(self) -> Codec:
        return Codec(self._parameters, JSON)

    def _make_encode(self) -> Encode:
        codec, name = self.msgpack, self._parameters.task_name
        must, may, plain = self._parameters.must, self._parameters.may, self._parameters.plain
        # The number of positional arguments that is enough -> what checks them, or None if there are no types to check.
        enough = {n: codec.positional[n] if codec.typed else None for n in range(len(must)) if not must[n]}
        head, args_key = msgpack_head("task", name), MSGPACK_ARGS
        dump, join, make_id = MSGPACK.encode, b"".join, new_id

        def encode(args: tuple[Any, ...], kwargs: Mapping[str, Any], ident: Id | None, /) -> tuple[Id, bytes]:
            named = EMPTY_MAP
            payload: bytes | Raw | None
            try:
                payload = dump(args)
                if kwargs:
                    count = len(args)
                    if not (plain and must[count] <= kwargs.keys() <= may[count]):
                        raise LookupError
                    codec.positional[count](payload)
                    named = Raw(dump(kwargs))
                    codec.keyword(named)
                else:
                    check = enough[len(args)]
                    if check is not None:
                        check(payload)
                    if ident is None:
                        ident = make_id()
                        return ident, join((head, ident, args_key, payload))
            except _NOT_QUICK:
                payload = None
            if payload is None:
                payload, named = codec.encode(args, kwargs)
                named = named if kwargs else EMPTY_MAP
            ident = make_id() if ident is None else ident
            return ident, encode_msgpack("task", name, ident, Raw(payload), named)

        return encode

    def _make_decode(self) -> Decode:
        must, may, plain = self._parameters.must, self._parameters.may, self._parameters.plain
        positional, keyword = self.msgpack.positional, self.msgpack.keyword
        enough = {n: positional[n] for n in range(len(must)) if not must[n]}
        only = next(iter(enough.values())) if len(enough) == 1 else None
        empty_map, decode_slowly = EMPTY_MAP, self._decode_slowly

        def decode(envelope: Envelope) -> Arguments:
            args, kwargs = envelope.args, envelope.kwargs
            try:
                # The first byte of a short array is 0x90 plus its length; of a short map, 0x80.
                if kwargs is empty_map:
                    read = only or enough[memoryview(args)[0] - 0x90]
                    return read(args), {}
                if plain and envelope.__class__ is Envelope:
                    count = memoryview(args)[0] - 0x90
                    named = keyword(kwargs)
                    known = envelope.event or memoryview(kwargs)[0] - 0x80 == len(named)
                    if known and count >= 0 and must[count] <= named.keys() <= may[count]:
                        return positional[count](args), named
            except _NOT_QUICK:
                pass
            return decode_slowly(envelope)

        return decode

    def _decode_slowly(self, envelope: Envelope) -> Arguments:
        codec = self.json if isinstance(envelope, JsonEnvelope) else self.msgpack
        return codec.decode(envelope.args, envelope.kwargs, lenient=bool(envelope.event))

    def _encode_json(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], ident: Id | None, /) -> tuple[Id, bytes]:
        encoded, named = self.json.encode(args, kwargs)
        ident = new_id() if ident is None else ident
        return ident, encode_json("task", self._parameters.task_name, ident, encoded, named if kwargs else EMPTY_MAP)


def encode_event(
    name: str, fields: Mapping[str, Any], ident: Id | None, handlers: Iterable[Decode]
) -> tuple[Id, bytes]:
    """Encode an event for its handlers, as far as they are known here. Raises ArgumentsError if one can't read it."""
    try:
        encoded = MSGPACK.encode(fields)
    except UNENCODABLE:
        encoded = MSGPACK.encode({field: encode_one(MSGPACK, name, field, value) for field, value in fields.items()})
    ident = new_id() if ident is None else ident
    value = encode_msgpack("event", name, ident, EMPTY_ARRAY, Raw(encoded))
    for handler in handlers:
        handler(decode_envelope(value))
    return ident, value


# --- cloudpickle


class CloudpickleSerializer:
    """Pickled arguments, signed. Types are not converted: what was passed arrives."""

    def __init__(self, parameters: Parameters, secrets: Sequence[bytes]) -> None:
        if not secrets:
            raise ConfigError(f'{parameters.task_name}: serializer="cloudpickle" signs its messages: set TASKQ_SECRET')
        self._parameters = parameters
        self._signer = Signer(secrets)

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], ident: Id | None, /) -> tuple[Id, bytes]:
        import cloudpickle  # type: ignore[import-untyped]

        name = self._parameters.task_name
        self._parameters.check(args, kwargs)
        try:
            pickled = cloudpickle.dumps((args, dict(kwargs)))
        except Exception as error:  # whatever a class's own __reduce__ raises
            raise ArgumentsError(f"{name}: the arguments can't be pickled: {error}") from error
        ident = new_id() if ident is None else ident
        signature = self._signer.sign(name, ident, pickled)
        return ident, encode_msgpack("task", name, ident, Raw(MSGPACK.encode(pickled)), EMPTY_MAP, signature)

    def decode(self, envelope: Envelope) -> Arguments:
        import pickle

        name = self._parameters.task_name
        if envelope.signature is None or envelope.id is None or envelope.kwargs is not EMPTY_MAP or envelope.event:
            raise SignatureError(f"{name} runs signed messages only, and this one is not signed")
        try:
            pickled: bytes = _decode_bytes(envelope.args)
        except ValueError as error:
            raise SerializationError(f"{name}: args: {error}") from error
        self._signer.verify(envelope.signature, name, envelope.id, pickled)
        try:
            args, kwargs = pickle.loads(pickled)  # noqa: S301 - signed by one of us
            args, kwargs = tuple(args), dict(kwargs)
        except Exception as error:  # a module that is missing here, a class that has changed, ...
            raise SerializationError(f"{name}: the arguments can't be unpickled: {error!r}") from error
        self._parameters.check(args, kwargs)
        return args, kwargs


_decode_bytes = msgspec.msgpack.Decoder(bytes).decode


class Signer:
    """Signs with the first secret, verifies with any."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        from hashlib import sha256

        self._keys = {sha256(b"taskq key id" + secret).digest()[:_KEY_ID_BYTES]: secret for secret in secrets}
        self._first = next(iter(self._keys))

    def sign(self, name: str, ident: Id, pickled: bytes) -> bytes:
        return self._first + self._mac(self._first, name, ident, pickled)

    def verify(self, signature: bytes, name: str, ident: Id, pickled: bytes) -> None:
        """Raises SignatureError unless `sign` of one of these secrets made it."""
        from hmac import compare_digest

        key_id, mac = signature[:_KEY_ID_BYTES], signature[_KEY_ID_BYTES:]
        if key_id not in self._keys or len(mac) != _MAC_BYTES:
            raise SignatureError(f"{name}: the message is signed with a secret that is not in TASKQ_SECRET")
        if not compare_digest(mac, self._mac(key_id, name, ident, pickled)):
            raise SignatureError(f"{name}: the message was changed after it was signed")

    def _mac(self, key_id: bytes, name: str, ident: Id, pickled: bytes) -> bytes:
        from hmac import digest

        ident_part = b"b" + ident if isinstance(ident, bytes) else b"s" + ident.encode()
        parts = (_SIGNED, key_id, name.encode(), ident_part, pickled)
        return digest(self._keys[key_id], b"".join(len(part).to_bytes(8, "big") + part for part in parts), "sha256")
