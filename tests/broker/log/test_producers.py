"""Which batch of a producer is the next one, a retry, or out of order: Kafka's rules, without a log."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.log.batch import BASE_OFFSET, BatchHeader, ProducerStamp, encode_many, read_header
from taskq.broker.log.producers import EXPIRES_MS, SEQUENCES, OutOfOrderSequence, ProducerFenced, Producers
from taskq.broker.port import Message
from tests.broker.log.conftest import NOW_MS

LAST = SEQUENCES - 1


def header(sequence: int, count: int = 1, epoch: int = 0, producer: int = 7, offset: int = 0) -> BatchHeader:
    messages = [Message(b"v")] * count
    raw = BASE_OFFSET.pack(offset) + encode_many(messages, NOW_MS, ProducerStamp(producer, epoch, sequence))
    return read_header(raw, 0)


def after(*sent: BatchHeader) -> Producers:
    producers = Producers()
    for one in sent:
        producers.add(one)
    return producers


SIX = [header(number * 2, 2, offset=100 + number * 10) for number in range(6)]


@pytest.mark.parametrize(
    ("sent", "batch", "answer"),
    [
        pytest.param([], header(0), None, id="a new producer"),
        pytest.param([], header(4711), None, id="one that is not known may be anywhere"),
        pytest.param([], header(4711, epoch=3), None, id="in any epoch"),
        pytest.param([header(0, 3)], header(3), None, id="the next one"),
        pytest.param([header(0, 3, offset=9)], header(0, 3), 9, id="a retry of the last one"),
        pytest.param(SIX, header(2, 2), 110, id="a retry of the fifth from the end"),
        pytest.param(SIX, header(0, 2), OutOfOrderSequence, id="a retry of the sixth"),
        pytest.param(SIX, header(10), OutOfOrderSequence, id="as the last one, but shorter"),
        pytest.param(SIX, header(10, 3), OutOfOrderSequence, id="as the last one, but longer"),
        pytest.param([header(0, 3)], header(2), OutOfOrderSequence, id="overlapping"),
        pytest.param([header(0, 3)], header(4), OutOfOrderSequence, id="one too far"),
        pytest.param([header(0, epoch=2)], header(1, epoch=1), ProducerFenced, id="an older epoch"),
        pytest.param([header(0, epoch=2)], header(0, epoch=1), ProducerFenced, id="a retry in an older epoch"),
        pytest.param([header(0)], header(0, epoch=1), None, id="a newer epoch"),
        pytest.param([header(0)], header(1, epoch=1), OutOfOrderSequence, id="a newer epoch that goes on"),
        pytest.param([header(0), header(0, epoch=1, offset=5)], header(0, epoch=1), 5, id="a retry in the newer epoch"),
        pytest.param([header(LAST)], header(0), None, id="round at the end"),
        pytest.param([header(LAST - 1)], header(LAST, 2), None, id="a batch that goes round"),
        pytest.param([header(LAST, 2)], header(1), None, id="after a batch that goes round"),
        pytest.param([header(LAST, 2, offset=3)], header(LAST, 2), 3, id="a retry of a batch that goes round"),
        pytest.param([header(LAST)], header(1), OutOfOrderSequence, id="past the end, one too far"),
        pytest.param([header(0)], header(0, producer=8), None, id="another producer"),
    ],
)
def test_what_becomes_of_a_batch(sent: list[BatchHeader], batch: BatchHeader, answer: object) -> None:
    for producers in (after(*sent), Producers.decode(after(*sent).encode(1))[1]):  # type: ignore[index]
        if isinstance(answer, type):
            with pytest.raises(answer, match="producer 7"):
                producers.check(batch, NOW_MS)
        else:
            assert producers.check(batch, NOW_MS) == answer


def test_a_producer_is_forgotten_after_a_while() -> None:
    producers = after(header(0, offset=3), header(0, producer=8))
    late = NOW_MS + EXPIRES_MS
    assert producers.check(header(0), late - 1) == 3
    assert producers.check(header(0), late) is None
    assert producers.check(header(5), late) is None
    producers.forget_expired(late - 1)
    assert len(producers) == 2
    producers.forget_expired(late)
    assert len(producers) == 0


def test_batches_of_nobody_are_not_counted() -> None:
    assert len(after(header(-1, producer=-1, epoch=-1))) == 0


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[1]", b"\xff\x00", b'{"crc": 1, "body": "{}"}', b'{"crc": 0, "body": 3}']
)
def test_a_snapshot_that_is_not_sound_is_none(damage: bytes) -> None:
    assert Producers.decode(damage) is None
    sound = after(*SIX).encode(20)
    assert Producers.decode(sound.replace(b"110", b"111")) is None
    assert Producers.decode(sound[:-9]) is None


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=40), st.sampled_from([0, LAST - 20]))
def test_every_batch_is_in_the_log_once_however_often_it_is_sent(sends: list[tuple[int, int]], first: int) -> None:
    """A client that sends its batches in order, each again some times, and any of its last five again after that."""
    producers = Producers()
    log: list[tuple[int, int]] = []
    end = 0
    sequence = first
    for count, back in sends:
        batch = header(sequence, count, offset=end)
        assert producers.check(batch, NOW_MS) is None
        producers.add(batch)
        log.append((sequence, count))
        end += count
        sequence = (sequence + count) % SEQUENCES
        if back < len(log):
            again = header(*log[-1 - back])
            if back < 5:
                assert producers.check(again, NOW_MS) == sum(one[1] for one in log[: len(log) - 1 - back])
            else:
                with pytest.raises(OutOfOrderSequence):
                    producers.check(again, NOW_MS)
