"""What producers have sent to a partition: whether a batch is the next one, a retry, or out of order. Pure.

The rules are those of Kafka's brokers. A producer has an id, an epoch (its life: a new one fences off the one before)
and numbers its records from 0 on, for each partition, going round at 2^31. Of each producer its last five batches are
known, since a client has at most five under way.

    one of the last five again                      a retry: it gets the offset it got then, and nothing is appended
    the number that follows the last one            accepted
    another number                                  OutOfOrderSequence
    an older epoch                                  ProducerFenced
    a newer epoch                                   accepted, if it begins at 0
    a producer that is not known, at any number     accepted: what it sent before may have been removed, or is so long
                                                    ago that it was forgotten

All of this follows from the headers of the log's batches, taken in in their order (`add`), so every process that reads
the same log knows the same. Retention and compaction remove batches, so what they are about to remove is put into a
snapshot first (idempotence.py).
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from attrs import define, field

from taskq.broker.log.batch import BatchHeader
from taskq.broker.log.sealed import decode_sealed, encode_sealed
from taskq.errors import BrokerError

SEQUENCES: Final = 1 << 31
"""How many sequences there are: after the last one comes 0."""
BATCHES_KEPT: Final = 5
EXPIRES_MS: Final = 7 * 24 * 60 * 60 * 1000
"""How long a producer is known after its last batch. Kafka: one day, but who retries may sleep over a weekend."""


class OutOfOrderSequence(BrokerError):
    """A producer's batch is not the one that is due: what is between was lost. It must begin anew, with a new epoch."""


class ProducerFenced(BrokerError):
    """A producer of the same id has begun a newer epoch. This one must stop: the other has taken its place."""


class Sent(NamedTuple):
    """A batch of a producer, as it lies in the log."""

    first_sequence: int
    last_sequence: int
    base_offset: int
    timestamp_ms: int


@define
class _Producer:
    epoch: int
    batches: deque[Sent] = field(factory=lambda: deque(maxlen=BATCHES_KEPT))


def last_sequence(header: BatchHeader) -> int:
    """The sequence of a batch's last record. By its offsets: compaction may have removed the record itself."""
    return (header.base_sequence + header.last_offset_delta) % SEQUENCES


class Producers:
    """The producers of one partition, by id. Not thread-safe."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, _Producer] = {}

    def __len__(self) -> int:
        return len(self._known)

    def check(self, header: BatchHeader, now_ms: int) -> int | None:
        """The offset that this batch has in the log already; None if it is the next one, to be appended.

        Raises OutOfOrderSequence or ProducerFenced.
        """
        known = self._known.get(header.producer_id)
        if known is None or known.batches[-1].timestamp_ms + EXPIRES_MS <= now_ms:
            return None
        name = f"producer {header.producer_id}"
        if header.producer_epoch < known.epoch:
            raise ProducerFenced(f"{name}: epoch {header.producer_epoch} is over, {known.epoch} has begun")
        first, last = header.base_sequence, last_sequence(header)
        if header.producer_epoch > known.epoch:
            if first:
                raise OutOfOrderSequence(f"{name}: epoch {header.producer_epoch} begins at {first}; 0 is due")
            return None
        for sent in known.batches:
            if sent.first_sequence == first and sent.last_sequence == last:
                return sent.base_offset
        due = (known.batches[-1].last_sequence + 1) % SEQUENCES
        if first != due:
            raise OutOfOrderSequence(f"{name}, epoch {known.epoch}: sequence {first} where {due} is due")
        return None

    def add(self, header: BatchHeader) -> None:
        """Take in a batch of the log. In the order of the log."""
        if header.producer_id < 0:
            return
        known = self._known.get(header.producer_id)
        if known is None or known.epoch != header.producer_epoch:
            known = self._known[header.producer_id] = _Producer(header.producer_epoch)
        sent = Sent(header.base_sequence, last_sequence(header), header.base_offset, header.max_timestamp_ms)
        known.batches.append(sent)

    def forget_expired(self, now_ms: int) -> None:
        """Let go of those that have sent nothing for EXPIRES_MS."""
        for number, known in list(self._known.items()):
            if known.batches[-1].timestamp_ms + EXPIRES_MS <= now_ms:
                del self._known[number]

    def encode(self, offset: int) -> bytes:
        """As a snapshot file: all that is known is of batches below `offset`."""
        known = {number: [one.epoch, list(one.batches)] for number, one in self._known.items()}
        return encode_sealed({"offset": offset, "producers": known})

    @classmethod
    def decode(cls, raw: bytes) -> tuple[int, Producers] | None:
        """(offset, what is known of all batches below it); None if these bytes are no sound snapshot."""
        document = decode_sealed(raw)
        if document is None:
            return None
        producers = cls()
        for number, (epoch, batches) in document["producers"].items():
            sent = deque((Sent(*batch) for batch in batches), maxlen=BATCHES_KEPT)
            producers._known[int(number)] = _Producer(epoch, sent)
        return document["offset"], producers
