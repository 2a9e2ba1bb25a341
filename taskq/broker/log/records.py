"""One record of a RecordBatch v2, encoded and decoded: the slow, obvious way for any shape. The layout is in batch.py.

Pure: bytes in, bytes out. What is quick for the shape that nearly all records have is in batch.py.
"""

from __future__ import annotations

from typing import Final

from taskq.broker.port import Headers, Record

VARINT_TABLE_SIZE: Final = 8192  # covers every length that takes one or two bytes
_VARINT_BYTES_MAX = 10


class BadBatch(ValueError):
    """Bytes are not a sound batch. `position` counts from the start of the buffer that was given."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"byte {position}: {reason}")
        self.position = position
        self.reason = reason


def encode_varint(value: int) -> bytes:
    """`value` as a zigzag varint: small numbers of either sign take few bytes."""
    rest = (value << 1) ^ (value >> 63)
    out = bytearray()
    while rest > 0x7F:
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


VARINTS = tuple(encode_varint(value) for value in range(VARINT_TABLE_SIZE))
_NULL = encode_varint(-1)
# attributes 0, timestamp delta 0, the offset delta, a null key: how the i-th plain record of a batch begins
OPENINGS = tuple(b"\x00\x00" + delta + b"\x01" for delta in VARINTS)


def _length(value: int) -> bytes:
    return VARINTS[value] if value < VARINT_TABLE_SIZE else encode_varint(value)


def _encode_headers(headers: Headers) -> bytes:
    parts = [_length(len(headers))]
    for name, value in headers:
        raw = name.encode()
        parts += (_length(len(raw)), raw, _length(len(value)), value)
    return b"".join(parts)


def encode_record(offset_delta: int, value: bytes | None, key: bytes | None, headers: Headers) -> bytes:
    """A record without a timestamp of its own. A value of None is a tombstone."""
    body = b"".join(
        (
            b"\x00\x00",  # attributes, timestamp delta
            _length(offset_delta),
            _NULL if key is None else _length(len(key)) + key,
            _NULL if value is None else _length(len(value)) + value,
            _encode_headers(headers) if headers else b"\x00",
        )
    )
    return _length(len(body)) + body


def decode_record(buffer: bytes, position: int, base: int, base_ts: int) -> tuple[Record, int]:
    """Any one record at `position`, and the position after it."""
    size, position = _varint(buffer, position)
    end = position + size
    delta_ts, position = _varint(buffer, position + 1)  # after the attributes, which are unused
    delta, position = _varint(buffer, position)
    if delta < 0:
        raise BadBatch(position, f"a record {-delta} offsets before its batch")
    key, position = _bytes(buffer, position, end)
    value, position = _bytes(buffer, position, end)
    headers, position = _headers(buffer, position, end)
    return Record(base + delta, base_ts + delta_ts, key, value, headers), position


def _varint(buffer: bytes, position: int) -> tuple[int, int]:
    """The zigzag varint at `position`, and the position after it."""
    raw = shift = 0
    for _ in range(_VARINT_BYTES_MAX):
        byte = buffer[position]
        position += 1
        raw |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            return (raw >> 1) ^ -(raw & 1), position
        shift += 7
    raise BadBatch(position, "a varint of more than ten bytes")


def _bytes(buffer: bytes, position: int, end: int) -> tuple[bytes | None, int]:
    size, position = _varint(buffer, position)
    if size < 0:
        return None, position
    if position + size > end:
        raise BadBatch(position, f"a field of {size} bytes runs past its record")
    return buffer[position : position + size], position + size


def _headers(buffer: bytes, position: int, end: int) -> tuple[Headers, int]:
    count, position = _varint(buffer, position)
    headers: list[tuple[str, bytes]] = []
    for _ in range(count):
        name, position = _bytes(buffer, position, end)
        value, position = _bytes(buffer, position, end)
        headers.append(((name or b"").decode(), value or b""))
    if position != end:
        raise BadBatch(position, f"a record ends at byte {position}, its length says {end}")
    return tuple(headers), position
