from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskq.broker.log.batch import (
    BASE_OFFSET,
    HEADER_BYTES,
    NO_PRODUCER,
    BadBatch,
    ProducerStamp,
    check_crc,
    crc32c,
    decode_batches,
    encode_filler,
    encode_many,
    encode_one,
    read_header,
)
from taskq.broker.log.records import decode_record, encode_varint
from taskq.broker.port import Message, Record

NOW_MS = 1_700_000_000_000

sizes = st.sampled_from([0, 1, 56, 57, 58, 63, 64, 65, 127, 128, 4095, 4096, 8175, 8183, 8184, 8191, 8192, 20_000])
values = st.one_of(st.none(), st.binary(max_size=80), sizes.map(lambda size: b"v" * size))
keys = st.one_of(st.none(), st.binary(max_size=70))
headers = st.lists(st.tuples(st.text(max_size=10), st.binary(max_size=200)), max_size=3).map(tuple)
messages = st.builds(Message, values, keys, headers)


def whole(batch: bytes, base_offset: int = 0) -> bytes:
    return BASE_OFFSET.pack(base_offset) + batch


def decode(raw: bytes, offset: int = 0, limit: int = 1 << 62, due: int | None = None) -> list[Record]:
    records, position, _ = decode_batches(raw, 0, offset, limit, 1 << 30, due=due)
    assert position == len(raw)
    return records


@given(messages, st.integers(0, 1 << 50), st.integers(0, 1 << 45))
def test_one_record_comes_back_as_it_was(message: Message, offset: int, timestamp_ms: int) -> None:
    raw = whole(encode_one(message.value, message.key, message.headers, timestamp_ms), offset)
    assert decode(raw, offset, offset + 1) == [
        Record(offset, timestamp_ms, message.key, message.value, message.headers)
    ]


@given(st.lists(messages, min_size=1, max_size=150), st.integers(0, 1 << 50))
def test_many_records_come_back_as_they_were(batch: list[Message], offset: int) -> None:
    raw = whole(encode_many(batch, NOW_MS), offset)
    expected = [Record(offset + i, NOW_MS, m.key, m.value, m.headers) for i, m in enumerate(batch)]
    assert decode(raw, offset) == expected


def test_a_batch_of_more_records_than_the_tables_hold() -> None:
    batch = [Message(b"%d" % number) for number in range(10_000)]
    assert [record.value for record in decode(whole(encode_many(batch, NOW_MS)))] == [m.value for m in batch]


@given(st.integers(2, 70), st.integers(0, 70), st.data())
def test_records_of_one_length_are_read_as_any_others_are(count: int, size: int, data: st.DataObject) -> None:
    """Also where a byte of theirs is another, and the CRC is that of what is there."""
    records = bytearray(encode_many([Message(bytes([number]) * size) for number in range(count)], NOW_MS)[53:])
    records[data.draw(st.integers(0, len(records) - 1))] = data.draw(st.integers(0, 255))
    after_crc = struct.pack(">hiqqqhii", 0, count - 1, NOW_MS, NOW_MS, -1, -1, -1, count) + records
    raw = whole(struct.pack(">iibI", len(after_crc) + 9, 0, 2, crc32c(after_crc)) + after_crc)
    expected, position = [], HEADER_BYTES
    try:
        for _ in range(count):
            record, position = decode_record(raw, position, 0, NOW_MS)
            expected.append(record)
    except (BadBatch, IndexError, UnicodeDecodeError):
        expected = []
    try:
        assert decode(raw) == expected
    except BadBatch:
        ascends = [record.offset for record in expected] == list(range(count))
        assert not ascends or position != len(raw)


@given(messages)
def test_one_record_alone_is_encoded_as_a_batch_of_one(message: Message) -> None:
    assert encode_one(*message, NOW_MS) == encode_many([message], NOW_MS)


def test_the_layout_is_kafkas() -> None:
    """Field by field against the Kafka documentation, so that a mistake shared by both directions is seen."""
    raw = whole(encode_one(b"value", b"k", (("h", b"x"),), 1234), 5)
    fields = struct.unpack_from(">qiibIhiqqqhii", raw)
    crc = fields[4]
    assert fields == (5, len(raw) - 12, 0, 2, crc, 0, 0, 1234, 1234, -1, -1, -1, 1)
    assert crc == crc32c(raw[21:])
    # length 16; attributes; timestamp delta; offset delta; key; value; one header
    assert raw[61:] == b"\x20\x00\x00\x00\x02k\x0avalue\x02\x02h\x02x"


def test_a_batch_says_who_sent_it_and_its_number() -> None:
    raw = whole(encode_many([Message(b"a"), Message(None, b"k")], NOW_MS, ProducerStamp(1 << 40, 7, 2**31 - 1)))
    header = read_header(raw, 0)
    assert (header.producer_id, header.producer_epoch, header.base_sequence) == (1 << 40, 7, 2**31 - 1)
    check_crc(raw, 0, header)
    assert decode(raw) == [Record(0, NOW_MS, None, b"a", ()), Record(1, NOW_MS, b"k", None, ())]
    anonymous = read_header(whole(encode_one(b"a", None, (), NOW_MS)), 0)
    assert (anonymous.producer_id, anonymous.producer_epoch, anonymous.base_sequence) == NO_PRODUCER


def test_a_filler_takes_up_offsets_and_has_no_records() -> None:
    raw = whole(encode_filler(5), 3) + whole(encode_one(b"after", None, (), NOW_MS), 8)
    assert decode_batches(raw, 0, 4, 100, 100, due=3) == ([Record(8, NOW_MS, None, b"after", ())], len(raw), 9)


def test_crc32c_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, B.4 gives the polynomial; this is its usual check value


@pytest.mark.parametrize(
    ("value", "encoded"), [(0, "00"), (-1, "01"), (1, "02"), (63, "7e"), (64, "8001"), (-65, "8101")]
)
def test_varints_are_zigzag(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded


def test_records_below_the_place_asked_for_are_left_out() -> None:
    raw = whole(encode_many([Message(b"a"), Message(b"b"), Message(b"c")], NOW_MS), 10)
    assert [record.offset for record in decode(raw, offset=11, due=10)] == [11, 12]


def test_batches_at_or_past_the_limit_are_not_looked_at() -> None:
    sound = whole(encode_one(b"a", None, (), NOW_MS))
    records, position, following = decode_batches(sound + b"\xff" * 100, 0, 0, 1, 1 << 30)
    assert ([record.value for record in records], position, following) == ([b"a"], len(sound), 1)


def test_a_batch_that_is_not_all_there_is_left_for_later() -> None:
    first, second = (whole(encode_one(b"a", None, (), NOW_MS), offset) for offset in (0, 1))
    for cut in range(len(second)):
        records, position, _ = decode_batches(first + second[:cut], 0, 0, 2, 1 << 30)
        assert (len(records), position) == (1, len(first))


@pytest.mark.parametrize("batch", [[Message(b"value")], [Message(b"value", b"k", (("h", b"x"),))], [Message(b"v")] * 3])
def test_corruption_is_never_served(batch: list[Message]) -> None:
    """Guarantee 9: any one bit flipped, from the length on, is refused or leaves a batch that is not all there."""
    raw = whole(encode_many(batch, NOW_MS))
    for bit in range(8 * len(raw)):
        if 12 * 8 <= bit < 16 * 8:
            continue  # the leader epoch, which no checksum covers and nobody reads
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            records, position, _ = decode_batches(bytes(damaged), 0, 0, len(batch), 1 << 30)
        except BadBatch:
            continue
        assert (records, position) == ([], 0), f"bit {bit}"


def test_damage_after_sound_batches_does_not_hide_them() -> None:
    sound = whole(encode_one(b"a", None, (), NOW_MS), 0)
    damaged = bytearray(whole(encode_one(b"b", None, (), NOW_MS), 1))
    damaged[-2] ^= 1
    raw = sound + bytes(damaged)
    records, position, following = decode_batches(raw, 0, 0, 2, 1 << 30)
    assert [record.value for record in records] == [b"a"]
    with pytest.raises(BadBatch, match="CRC32C") as caught:
        decode_batches(raw, position, following, 2, 1 << 30)
    assert caught.value.position == len(sound)


def test_an_offset_that_is_not_due_is_damage() -> None:
    with pytest.raises(BadBatch, match="offset 7 where 3 is due"):
        decode(whole(encode_one(b"a", None, (), NOW_MS), 7), offset=3)


def test_compressed_batches_are_refused_by_name() -> None:
    raw = bytearray(whole(encode_one(b"a", None, (), NOW_MS)))
    raw[22] = 4
    raw[17:21] = crc32c(bytes(raw[21:])).to_bytes(4, "big")
    with pytest.raises(BadBatch, match="compression type 4"):
        decode(bytes(raw))


@given(st.binary(min_size=HEADER_BYTES, max_size=400))
def test_any_bytes_are_refused_cleanly(raw: bytes) -> None:
    try:
        decode_batches(raw, 0, 0, 1 << 62, 1 << 30)
        read_header(raw, 0)
    except BadBatch:
        pass


@example(bytes.fromhex("180000000000808080808080 0000"), 1)  # a record, and a byte after it
@given(st.binary(max_size=60), st.integers(1, 5))
def test_records_of_any_bytes_with_a_sound_crc_are_refused_cleanly(records: bytes, count: int) -> None:
    """What another producer got wrong is not caught by the CRC; it must not become an error of ours."""
    after_crc = struct.pack(">hiqqqhii", 0, count - 1, 0, 0, -1, -1, -1, count) + records
    raw = whole(struct.pack(">iibI", len(after_crc) + 9, 0, 2, crc32c(after_crc)) + after_crc)
    try:
        found = decode(raw)
    except BadBatch:
        return
    assert len(found) == count


def test_a_record_before_its_batch_is_damage() -> None:
    """Whoever reads from the batch's start would miss it."""
    records = bytes.fromhex("0e00000001026100 0e00000101026200")  # of offset deltas 0 and -1
    after_crc = struct.pack(">hiqqqhii", 0, 1, 0, 0, -1, -1, -1, 2) + records
    raw = whole(struct.pack(">iibI", len(after_crc) + 9, 0, 2, crc32c(after_crc)) + after_crc)
    with pytest.raises(BadBatch, match="1 offsets before its batch"):
        decode(raw)
