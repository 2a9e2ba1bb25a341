"""The RecordBatch v2 codec: the format Kafka keeps on disk and sends on the wire. Pure: bytes in, bytes out.

Source: the Kafka documentation, "Record Batch" and "Record"; `docs/log-format.md` gives our use of every byte.

    base offset        int64    left out of the CRC, so a broker can set it without touching the rest
    batch length       int32    bytes after this field
    leader epoch       int32    left out of the CRC
    magic              int8     2
    crc                uint32   CRC32C of everything after this field
    attributes         int16    bits 0-2 compression (0: none), 3 timestamp type, 4 transactional, 5 control
    last offset delta  int32
    base timestamp     int64    milliseconds
    max timestamp      int64
    producer id        int64    -1: not idempotent
    producer epoch     int16
    base sequence      int32
    record count       int32
    records            each: varint length, int8 attributes, varint timestamp delta, varint offset delta,
                       varint key length, key, varint value length, value, varint header count, headers
                       (varint length, utf-8 name, varint length, value); all varints zigzag, length -1 is null

Speed is why this module looks as it does: a worker decodes some 200,000 records a second on one core beside
everything else, so the shape nearly all have (no key, no headers, a few KB at most) is recognised and built from
tables, and every other shape goes the slow, obvious way.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from struct import Struct
from typing import NamedTuple

from fastcrc import crc32

from taskq.broker.log.records import (
    OPENINGS,
    VARINT_TABLE_SIZE,
    VARINTS,
    decode_record,
    encode_record,
)
from taskq.broker.log.records import BadBatch as BadBatch  # noqa: PLC0414 - raised here too, and imported from here
from taskq.broker.port import Headers, Message, Record

HEADER = Struct(">qiibIhiqqqhii")
HEADER_BYTES = HEADER.size  # 61
BATCH_BYTES_MAX = 64 * 1024 * 1024
"""Ours have 2 MiB at most: a length that is damaged must not make anybody read a gigabyte."""
LENGTH_FIELD_END = 12  # batch length counts the bytes from here on
CRC_START = 21  # the CRC covers the bytes from here on
MAGIC = 2

BASE_OFFSET = Struct(">q")
_HEADER_USED = Struct(">qi4xbIhiq22xi")  # the header without the fields that reading records has no use for
_COMPRESSION_MASK = 0x07
_CONTROL_BIT = 0x20  # a control batch holds markers of transactions, not records
_UNUSUAL = _COMPRESSION_MASK | _CONTROL_BIT
_LEADER_EPOCH = 0
_AFTER_CRC = Struct(">hiqqqhii")
_BEFORE_CRC = Struct(">iibI")  # batch length, leader epoch, magic, crc
_NO_TIMESTAMP = -1

crc32c = crc32.iscsi


class ProducerStamp(NamedTuple):
    """What of a batch tells a retry from a new one: who sent it, in which of its lives, and the batch's sequence."""

    id: int
    epoch: int
    sequence: int
    """Of the batch's first record; the others count on."""


NO_PRODUCER = ProducerStamp(-1, -1, -1)


class BatchHeader(NamedTuple):
    """The 61 bytes before a batch's records, field by field."""

    base_offset: int
    length: int
    leader_epoch: int
    magic: int
    crc: int
    attributes: int
    last_offset_delta: int
    base_timestamp_ms: int
    max_timestamp_ms: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @property
    def size(self) -> int:
        """Bytes of the whole batch."""
        return self.length + LENGTH_FIELD_END

    @property
    def next_offset(self) -> int:
        return self.base_offset + self.last_offset_delta + 1


def _seal(records: bytes, count: int, timestamp_ms: int, producer: ProducerStamp) -> bytes:
    return _sign(_AFTER_CRC.pack(0, count - 1, timestamp_ms, timestamp_ms, *producer, count) + records)


def _sign(after_crc: bytes) -> bytes:
    length = len(after_crc) + CRC_START - LENGTH_FIELD_END
    return _BEFORE_CRC.pack(length, _LEADER_EPOCH, MAGIC, crc32c(after_crc)) + after_crc


def encode_one(value: bytes | None, key: bytes | None, headers: Headers, timestamp_ms: int) -> bytes:
    """A batch of one record, without its base offset: `BASE_OFFSET.pack(n) + encode_one(...)` is the whole."""
    if key is None and not headers and value is not None and len(value) < _PLAIN_VALUE_BYTES_MAX:
        # All but the time, the CRC and the value itself follows from the value's length.
        size = len(value)
        before_crc, opening = _plain_frames.get(size) or _plain_frame(size)
        time = timestamp_ms.to_bytes(8, "big")
        after_crc = b"".join((_NO_DELTA, time, time, _LONE, opening, value, b"\x00"))
        return b"".join((before_crc, crc32c(after_crc).to_bytes(4, "big"), after_crc))
    return _seal(encode_record(0, value, key, headers), 1, timestamp_ms, NO_PRODUCER)


_PLAIN_VALUE_BYTES_MAX = VARINT_TABLE_SIZE - 8
_NO_DELTA = _AFTER_CRC.pack(0, 0, 0, 0, -1, -1, -1, 1)[:6]  # attributes and last offset delta
_LONE = _AFTER_CRC.pack(0, 0, 0, 0, -1, -1, -1, 1)[22:]  # no producer; one record
_plain_frames: dict[int, tuple[bytes, bytes]] = {}


def _plain_frame(size: int) -> tuple[bytes, bytes]:
    """What stands before the CRC, and before the value, of a lone plain record whose value has `size` bytes."""
    opening = OPENINGS[0] + VARINTS[size]
    opening = VARINTS[len(opening) + size + 1] + opening
    length = _AFTER_CRC.size + len(opening) + size + 1 + CRC_START - LENGTH_FIELD_END
    frame = _BEFORE_CRC.pack(length, _LEADER_EPOCH, MAGIC, 0)[:-4], opening
    _plain_frames[size] = frame
    return frame


def encode_many(messages: Sequence[Message], timestamp_ms: int, producer: ProducerStamp = NO_PRODUCER) -> bytes:
    """A batch of many records, without its base offset. `messages` must not be empty."""
    varints = VARINTS
    parts: list[bytes] = []
    add = parts.append
    for delta, (value, key, headers) in enumerate(messages):
        if key is None and not headers and value is not None and len(value) < 4096 and delta < 4096:
            offset_delta = varints[delta]
            size = varints[len(value)]
            add(varints[len(offset_delta) + len(size) + len(value) + 4])
            add(b"\x00\x00" + offset_delta + b"\x01" + size)
            add(value)
            add(b"\x00")
        else:
            add(encode_record(delta, value, key, headers))
    return _seal(b"".join(parts), len(messages), timestamp_ms, producer)


def encode_batch(header: BatchHeader, records: bytes) -> bytes:
    """A whole batch of these records, its length and CRC made to fit. For who changes a batch that is in the log."""
    fields = header[5:]  # from the attributes on
    return BASE_OFFSET.pack(header.base_offset) + _sign(_AFTER_CRC.pack(*fields) + records)


def encode_filler(count: int, size: int = HEADER_BYTES) -> bytes:
    """A batch without records that takes up `count` offsets, without its base offset. Readers pass over it.

    It takes up `size` bytes, with zeros where records would be.
    """
    padding = bytes(size - HEADER_BYTES)
    return _sign(_AFTER_CRC.pack(0, count - 1, _NO_TIMESTAMP, _NO_TIMESTAMP, *NO_PRODUCER, 0) + padding)


def read_header(buffer: bytes | memoryview, position: int) -> BatchHeader:
    """The header of the batch at `position`; at least HEADER_BYTES must follow. Raises BadBatch on nonsense."""
    header = BatchHeader._make(HEADER.unpack_from(buffer, position))
    if header.magic != MAGIC:
        raise BadBatch(position, f"magic is {header.magic}, not {MAGIC}")
    if header.length < HEADER_BYTES - LENGTH_FIELD_END:
        raise BadBatch(position, f"batch length {header.length} is shorter than its own header")
    if header.size > BATCH_BYTES_MAX:
        raise BadBatch(position, f"a batch of {header.size} bytes, more than any has")
    if header.record_count < 0 or header.last_offset_delta < max(0, header.record_count - 1):
        raise BadBatch(position, f"{header.record_count} records in {header.last_offset_delta + 1} offsets")
    return header


def check_due(header: BatchHeader, position: int, offset: int) -> None:
    """Raises BadBatch unless the batch at `position` begins with `offset`, which is due there."""
    if header.base_offset != offset:
        raise BadBatch(position, f"a batch of offset {header.base_offset} where {offset} is due")


def check_crc(buffer: bytes | memoryview, position: int, header: BatchHeader) -> None:
    """Raises BadBatch unless the batch at `position`, which must be all there, is what was written."""
    found = crc32c(memoryview(buffer)[position + CRC_START : position + header.size])
    if found != header.crc:
        raise BadBatch(position, f"CRC32C is {found:#010x}, the header says {header.crc:#010x}")


def decode_batches(
    buffer: bytes, start: int, offset: int, limit: int, records_max: int, *, due: int | None = None
) -> tuple[list[Record], int, int]:
    """Decode whole batches from `buffer`, beginning at byte `start`, while they are below offset `limit`.

    `offset` is where the caller stands: it must lie in the batch at `start`, and records below it are left out. That
    batch must begin with offset `due` (None: with `offset`), as every later one must begin where the one before ended:
    the CRC leaves the base offset out, so nothing else would show that one is off. Stops at a batch that is not all
    there, or when `records_max` records have come. Returns (records, byte after the last batch, offset after the last
    batch). Raises BadBatch on damage, unless sound batches came before it: those are returned, and the next call
    raises.
    """
    records: list[Record] = []
    position, end = start, len(buffer)
    view = memoryview(buffer)
    unpack, crc_of, startswith, lone = _HEADER_USED.unpack_from, crc32c, buffer.startswith, _lone_openings
    new, record_type, add = tuple.__new__, Record, records.append
    next_offset = offset
    if due is not None and due != offset:
        _check_holds(buffer, start, offset)
        next_offset = due
    while next_offset < limit and end - position >= HEADER_BYTES and len(records) < records_max:
        base, length, magic, crc, attributes, last_delta, base_ts, count = unpack(buffer, position)
        stop = position + length + LENGTH_FIELD_END
        if stop > end and magic == MAGIC:
            break
        try:
            if (
                magic != MAGIC
                or stop <= position + HEADER_BYTES
                or last_delta < count - 1
                or count < 1
                or crc_of(view[position + CRC_START : stop]) != crc
                or base != next_offset
                or attributes & _UNUSUAL
            ):
                _refuse(buffer, position, next_offset)
            elif (
                count == 1
                and (opening := lone.get(length) or _lone_opening(length))
                and startswith(opening, position + HEADER_BYTES)
                and buffer[stop - 1] == 0
                and last_delta == 0
            ):
                value = buffer[position + HEADER_BYTES + len(opening) : stop - 1]
                add(new(record_type, (base, base_ts, None, value, ())))
            else:
                _decode_records(buffer, position + HEADER_BYTES, stop, base, base_ts, count, offset, records)
        except BadBatch:
            if records:
                break
            raise
        position = stop
        next_offset = base + last_delta + 1
    return records, position, next_offset


_lone_openings: dict[int, bytes] = {}


def _lone_opening(length: int) -> bytes:
    """How the record of a batch of length `length` begins if it is the batch's only one and plain; b"" if it can't be.

    Everything before the value follows from the length, so one comparison shows that there is no key and no header.
    """
    size = length - (HEADER_BYTES - LENGTH_FIELD_END)
    for size_bytes in (1, 2):
        for value_size_bytes in (1, 2):
            value_size = size - size_bytes - len(OPENINGS[0]) - value_size_bytes - 1
            if 0 <= value_size < VARINT_TABLE_SIZE > size - size_bytes:
                opening = VARINTS[size - size_bytes] + OPENINGS[0] + VARINTS[value_size]
                if len(opening) == size_bytes + len(OPENINGS[0]) + value_size_bytes:
                    _lone_openings[length] = opening
                    return opening
    return b""


def _check_holds(buffer: bytes, position: int, offset: int) -> None:
    """Raise BadBatch if the batch at `position` ends before `offset`, as far as its header is there."""
    if len(buffer) - position >= HEADER_BYTES:
        header = read_header(buffer, position)
        if header.next_offset <= offset:
            raise BadBatch(position, f"a batch that ends with offset {header.next_offset - 1} where {offset} is sought")


def _refuse(buffer: bytes, position: int, next_offset: int) -> None:
    """Raise BadBatch with what is wrong with the batch at `position`; return if it is only to be passed over."""
    header = read_header(buffer, position)
    check_crc(buffer, position, header)
    check_due(header, position, next_offset)
    if header.attributes & _COMPRESSION_MASK:
        raise BadBatch(position, f"compression type {header.attributes & _COMPRESSION_MASK} is not supported here")
    if header.record_count and not header.attributes & _CONTROL_BIT:
        raise BadBatch(position, f"{header.record_count} records in no bytes")


_NO_OPENING = b"\xff"
"""What no record's body begins with: these are its attributes."""


def _decode_records(
    buffer: bytes, position: int, stop: int, base: int, base_ts: int, count: int, first: int, out: list[Record]
) -> None:
    """Append the `count` records of one batch whose offset is at least `first` to `out`.

    The shape our own encoder writes for a record without key and headers follows from its length and its place in
    the batch, so a few comparisons recognise it and nothing is parsed; every other record goes to `decode_record`.
    Where a record is as long as the one before, even the shape is known.
    """
    new, record_type, add = tuple.__new__, Record, out.append
    begin, had, is_dense = position, len(out), True
    size_text, value_text, value_at, length = b"", b"", 0, 0  # of the plain record before; no record begins so
    try:
        for offset, opening in zip(range(base, base + count), chain(OPENINGS, repeat(_NO_OPENING)), strict=False):
            if (
                buffer[position : position + value_at] != size_text + opening + value_text
                or buffer[end := position + length]
            ):
                shape = _plain_shape(buffer, position, opening)
                if shape is None:
                    record, position = decode_record(buffer, position, base, base_ts)
                    is_dense = is_dense and record.offset == offset
                    if record.offset >= first:
                        add(record)
                    continue
                size_text, value_text, value_at, length = shape
                end = position + length
            if offset >= first:
                add(new(record_type, (offset, base_ts, None, buffer[position + value_at : end], ())))
            position = end + 1
        if position != stop:
            raise BadBatch(begin, f"records end at byte {position}, the batch at {stop}")
        if not is_dense:
            _check_offsets(read_header(buffer, begin - HEADER_BYTES), begin, out[had:])
    except (IndexError, UnicodeDecodeError, BadBatch) as error:
        del out[had:]  # a batch is served whole or not at all
        if isinstance(error, BadBatch):
            raise
        raise BadBatch(begin, f"records run past their batch or are not UTF-8 where they must be: {error}") from error


def _plain_shape(buffer: bytes, position: int, opening: bytes) -> tuple[bytes, bytes, int, int] | None:
    """How the record at `position` says its size, and that of its value; where in it its value is, and where it ends.

    None if it is not of the shape that is told above.
    """
    size = buffer[position]
    if size > 0x7F:
        high = buffer[position + 1]
        size = (size & 0x7F) | (high << 7) if high <= 0x7F else 2 * VARINT_TABLE_SIZE
    size >>= 1
    if size >= VARINT_TABLE_SIZE or not buffer.startswith(VARINTS[size] + opening, position):
        return None
    before = len(VARINTS[size])
    length = before + size - 1
    value_at = before + len(opening) + 1
    if length - value_at > 63:  # which is what one byte can say
        value_at += 1
    value_size = length - value_at
    if value_size < 0 or not buffer.startswith(VARINTS[value_size], position + before + len(opening)):
        return None
    return (VARINTS[size], VARINTS[value_size], value_at, length) if buffer[position + length] == 0 else None


def _check_offsets(header: BatchHeader, position: int, records: Sequence[Record]) -> None:
    """Of a batch with gaps between its records: raises BadBatch unless they ascend and are the batch's own."""
    last = header.base_offset - 1
    for record in records:
        if not last < record.offset < header.next_offset:
            raise BadBatch(position, f"a record of offset {record.offset} after {last}, before {header.next_offset}")
        last = record.offset
