"""Any bytes at all: the codec reads them, or says that they are not a batch. It never makes up a record."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.log.batch import (
    HEADER_BYTES,
    BadBatch,
    check_crc,
    decode_batches,
    read_header,
)
from taskq.broker.log.records import _varint, decode_record, encode_varint
from taskq.broker.port import Message, Record
from tests.fuzz.mutations import batches, encode, harmed, sealed

_FAR = 1 << 62


def decode_all(raw: bytes, offset: int, records_max: int = _FAR) -> list[Record]:
    """All that can be decoded before the damage, if there is any, as a reader would."""
    records: list[Record] = []
    position, due = 0, min(offset, int.from_bytes(raw[:8], "big", signed=True))
    while True:
        try:
            found, after, next_offset = decode_batches(raw, position, offset, _FAR, records_max, due=due)
        except BadBatch:
            return records
        assert position <= after <= len(raw)
        assert next_offset >= offset or after == position
        assert all(offset <= record.offset < next_offset for record in found)
        assert all(one.offset < other.offset for one, other in pairwise(found))
        records += found
        if after == position:
            return records
        position, offset, due = after, next_offset, next_offset


@given(st.binary(max_size=300), st.integers(0, 10))
def test_bytes_of_any_kind_decode_or_are_refused(raw: bytes, offset: int):
    decode_all(raw, offset)


@given(st.binary(min_size=HEADER_BYTES, max_size=200))
def test_a_header_of_any_bytes_is_read_or_refused(raw: bytes):
    try:
        header = read_header(raw, 0)
        check_crc(raw, 0, header)
    except BadBatch:
        return
    assert header.next_offset > header.base_offset


@given(batches, st.data())
def test_a_harmed_batch_is_never_read_as_anything_but_what_was_written(some: list[list[Message]], data: st.DataObject):
    raw, records = encode(some)
    found = decode_all(data.draw(harmed(raw)), 0, data.draw(st.sampled_from([1, 3, _FAR])))
    assert found == records[: len(found)]


@given(batches)
def test_a_log_that_is_cut_anywhere_gives_what_is_whole(some: list[list[Message]]):
    raw, records = encode(some)
    for end in {*range(0, len(raw), max(1, len(raw) // 200)), len(raw)}:
        found = decode_all(raw[:end], 0)
        assert found == records[: len(found)]
    assert decode_all(raw, 0) == records


@given(batches, st.data())
def test_a_byte_at_a_time_gives_the_same_as_the_whole(some: list[list[Message]], data: st.DataObject):
    raw, records = encode(some)
    buffer, offset, found = b"", 0, []
    step = data.draw(st.integers(1, 70))
    for at in range(0, len(raw), step):
        buffer += raw[at : at + step]
        some_records, after, offset = decode_batches(buffer, 0, offset, _FAR, _FAR)
        found += some_records
        buffer = buffer[after:]
    assert found == records
    assert not buffer


@given(batches, st.data())
def test_what_a_bad_producer_has_sealed_is_refused_or_has_records_as_they_must_be(
    some: list[list[Message]], data: st.DataObject
):
    """The CRC fits, so everything behind it is reached: lengths, deltas, varints, names."""
    raw, _ = encode(some[:1])
    # That they ascend and are the batch's own is checked there; here, that they are of the kinds a Record promises.
    for _, timestamp_ms, key, value, headers in decode_all(sealed(data.draw(harmed(raw))), 0):
        kinds = {type(timestamp_ms), *(type(field) for field in (key, value)), *(type(name) for name, _ in headers)}
        assert kinds <= {int, bytes, type(None), str}


@given(st.binary(max_size=100))
def test_a_record_of_any_bytes_decodes_or_is_refused(raw: bytes):
    try:
        _, end = decode_record(raw, 0, 0, 0)
    except (BadBatch, IndexError, UnicodeDecodeError):  # the last two are made BadBatch by who calls it
        return
    assert end <= len(raw)


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.binary(max_size=3))
def test_a_varint_comes_back(value: int, rest: bytes):
    raw = encode_varint(value)
    assert _varint(raw + rest, 0) == (value, len(raw))


@given(st.binary(max_size=12))
def test_a_varint_of_any_bytes_ends(raw: bytes):
    try:
        _, end = _varint(raw, 0)
    except (BadBatch, IndexError):
        return
    assert end <= len(raw)


def test_a_base_offset_that_is_off_is_not_taken_for_the_middle_of_a_batch():
    """It is the one field the CRC leaves out: read as is, records would come at others' offsets."""
    raw, records = encode([[Message(b"%d" % n) for n in range(4)], [Message(b"%d" % n) for n in range(4, 8)]])
    second = len(raw) // 2
    assert read_header(raw, second).base_offset == 4
    shifted = raw[:second] + (3).to_bytes(8, "big") + raw[second + 8 :]
    assert decode_all(shifted, 0) == records[:4]
    with pytest.raises(BadBatch):
        decode_batches(shifted[second:], 0, 4, _FAR, _FAR)
