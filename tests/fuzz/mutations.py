"""Ways in which bytes come to harm, and batches to harm."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

from hypothesis import strategies as st

from taskq.broker.log.batch import (
    BASE_OFFSET,
    CRC_START,
    HEADER_BYTES,
    LENGTH_FIELD_END,
    crc32c,
    encode_filler,
    encode_many,
    encode_one,
)
from taskq.broker.port import Message, Record

NOW_MS = 1_700_000_000_000
_LENGTH = Struct(">i")
_CRC_AT = 17

_headers = st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=5)), max_size=2).map(tuple)
_values = st.binary(max_size=40) | st.sampled_from([64, 4090, 9000]).map(bytes)
messages = st.builds(Message, _values, st.none() | st.binary(max_size=3), _headers)
batches = st.lists(st.lists(messages, max_size=5), min_size=1, max_size=5)
"""An empty batch is a filler of three offsets."""

_FILLED = 3


def encode(some: Sequence[Sequence[Message]], offset: int = 0) -> tuple[bytes, list[Record]]:
    """These batches one after the other, and the records that are in them."""
    parts, records = [], []
    for batch in some:
        if not batch:
            parts.append(BASE_OFFSET.pack(offset) + encode_filler(_FILLED))
            offset += _FILLED
            continue
        raw = encode_one(*batch[0], NOW_MS) if len(batch) == 1 else encode_many(batch, NOW_MS)
        parts.append(BASE_OFFSET.pack(offset) + raw)
        records += [Record(offset + n, NOW_MS, m.key, m.value, m.headers) for n, m in enumerate(batch)]
        offset += len(batch)
    return b"".join(parts), records


@st.composite
def harmed(draw: st.DrawFn, sound: bytes) -> bytes:
    """`sound`, after something has happened to it."""
    raw = bytearray(sound)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(raw)))
        size = draw(st.integers(0, 100) | st.integers(0, len(raw)))
        match draw(st.sampled_from(["flip", "zero", "cut", "delete", "repeat", "insert", "write"])):
            case "flip" if at < len(raw):
                raw[at] ^= 1 << draw(st.integers(0, 7))
            case "zero":
                raw[at : at + size] = bytes(len(raw[at : at + size]))
            case "cut":
                del raw[at:]
            case "delete":
                del raw[at : at + size]
            case "repeat":
                raw[at:at] = raw[at : at + size]
            case "insert":
                raw[at:at] = draw(st.binary(max_size=100))
            case _:
                new = draw(st.binary(max_size=16))
                raw[at : at + len(new)] = new
    return bytes(raw)


def sealed(batch: bytes | bytearray) -> bytes:
    """A batch whose length and CRC fit what is in it, whatever that is: how a bad producer's would look."""
    raw = bytearray(batch.ljust(HEADER_BYTES + 1, b"\0"))
    raw[8:LENGTH_FIELD_END] = _LENGTH.pack(len(raw) - LENGTH_FIELD_END)
    raw[16] = 2
    raw[_CRC_AT:CRC_START] = crc32c(bytes(raw[CRC_START:])).to_bytes(4, "big")
    return bytes(raw)
