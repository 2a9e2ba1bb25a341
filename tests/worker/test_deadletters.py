"""Dead letters to and fro: what is kept, what is sent again, and whatever else may be in such a topic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, msgpack

from taskq.broker.port import Message, Record, TopicPartition
from taskq.context import identify
from taskq.message import decode_envelope, derive_id, encode_msgpack, format_id, new_id
from taskq.trip import COUNT_MAX, EXPIRES, PAST_ERRORS_MAX, TRIP, PastError, Trip, header, trip_of, with_trip
from taskq.worker.deadletters import PREFIX, DeadLetter, dead_letter, read_letter, sent_again
from taskq.worker.retries import Failure
from tests.worker.letters import FAILED, FEED, letter

KEPT = TopicPartition("feed.dead", 2)
NOW_MS = 2_000_000


def kept(message: Message, offset: int = 5) -> DeadLetter:
    return read_letter(KEPT, Record(offset, 1_000_001, message.key, message.value, message.headers))


def again(message: Message) -> Record:
    """As it is when it was sent again."""
    value, key, headers = sent_again(kept(message), NOW_MS)
    return Record(0, NOW_MS, key, value, headers)


def test_a_letter_says_all_that_it_was_given_up_with():
    past = PastError(1, 950_000, "OSError", "no disk")
    trip = Trip(attempts=2, failures=2, errors=(past, PastError(2, 999_000, "ValueError", "not 7")), retried=1)
    found = kept(letter("a", 7, key=b"k", headers=with_trip((("x", b"y"),), trip)))
    assert (found.id, found.name, found.place, found.task, found.group) == ("a", "a", "2@5", "shop.pack", "feed")
    assert (found.reason, found.type, found.message) == ("failed", "ValueError", "not 7")
    assert found.traceback == FAILED.traceback
    assert (found.time_ms, found.published_ms) == (1_000_000, 900_000)
    assert found.origin == found.given_up_at == ("feed", 3, 17)
    assert found.trip == trip
    assert found.headers == {"x": "y"}


def test_what_was_tried_again_says_where_it_was_published():
    trip = Trip(attempts=1, origin=("posts", 1, 2), published_ms=5)
    found = kept(letter("a", headers=with_trip((), trip)))
    assert (found.origin, found.published_ms, found.given_up_at) == (("posts", 1, 2), 5, ("feed", 3, 17))


def test_sent_again_it_is_the_original_with_its_retries_and_its_history():
    errors = (PastError(1, 950_000, "OSError", "no disk"), PastError(2, 999_000, "ValueError", "not 7"))
    headers = with_trip((("x", b"\xff"), ("x", b"y")), Trip(attempts=2, failures=2, errors=errors))
    message = letter("a", 7, key=b"k", headers=headers)
    record = again(message)
    assert (record.key, record.value) == (b"k", message.value)
    assert [one for one in record.headers if one[0] != TRIP] == [("x", b"\xff"), ("x", b"y")]
    assert trip_of(record) == Trip(
        errors=errors, origin=("feed", 3, 17), published_ms=900_000, retried=1, retried_ms=NOW_MS
    )


def test_each_time_it_is_sent_again_is_counted():
    trip = Trip(attempts=1, errors=(PastError(1, 1, "ValueError", "not 7"),), origin=("posts", 1, 2), retried=3)
    found = trip_of(again(letter("a", headers=with_trip((), trip))))
    assert (found.retried, found.attempts, found.origin, found.errors) == (4, 0, ("posts", 1, 2), trip.errors)


def test_a_count_that_somebody_made_up_stays_one_that_can_be_read():
    headers = ((TRIP, b'{"retried":%d}' % COUNT_MAX),)
    assert trip_of(again(letter("a", headers=headers))).retried == COUNT_MAX


def test_what_never_ran_has_in_its_history_why():
    failure = Failure("unknown-task", "TaskNotFound", "no task 'shop.pack'")
    (past,) = trip_of(again(letter("a", failure=failure))).errors
    assert past == PastError(0, 1_000_000, "TaskNotFound", "no task 'shop.pack'")
    once_more = with_trip((), Trip(errors=(past,), retried=1))
    assert len(trip_of(again(letter("a", headers=once_more, failure=failure))).errors) == 2


def test_what_was_rejected_is_in_the_history_once():
    past = PastError(1, 1, "taskq.context.Reject", "x" * 140 + "\n[... cut ...]\n" + "x" * 140)
    trip = Trip(attempts=1, errors=(past,))
    failure = Failure("rejected", "Reject", "x" * 5000)
    assert trip_of(again(letter("a", headers=with_trip((), trip), failure=failure))).errors == (past,)


def test_the_history_stays_bounded():
    errors = tuple(PastError(n, n, "OSError", "no disk") for n in range(PAST_ERRORS_MAX))
    found = trip_of(again(letter("a", headers=with_trip((), Trip(attempts=9, errors=errors))))).errors
    assert found[0] == errors[0]
    assert found[-1].type == "ValueError"
    assert len(found) == PAST_ERRORS_MAX


@pytest.mark.parametrize("trip", [Trip(), Trip(attempts=1, id="named-before", origin=("posts", 0, 1))])
def test_what_was_published_without_an_id_keeps_the_one_it_was_called_by(trip: Trip):
    original = Record(17, 900_000, None, b'{"task": "shop.pack"}', with_trip((), trip))
    envelope = decode_envelope(original.value)
    before = identify(envelope, original, FEED)
    message = dead_letter("feed", "shop.pack", FEED, original, FAILED, 1_000_000)
    assert kept(message).id == format_id(before)
    record = again(message)
    assert identify(envelope, record, TopicPartition("feed.retry", 0)) == before
    twice = dead_letter("feed", "shop.pack", TopicPartition("feed.retry", 0), record, FAILED, 1_000_000)
    assert kept(twice).id == format_id(before)


@pytest.mark.parametrize(
    ("task", "before", "handler"),
    [("feed.notify", "", "feed.notify"), ("posted", "", ""), ("feed.notify", "feed.notify", "feed.notify")],
)
def test_of_an_event_only_the_handler_that_failed_has_it_again(task: str, before: str, handler: str):
    value = encode_msgpack("event", "posted", new_id(), Raw(msgpack.encode([])))
    original = Record(17, 900_000, None, value, with_trip((), Trip(handler=before)))
    message = dead_letter("feed", task, FEED, original, FAILED, 1_000_000)
    assert kept(message).task == task
    assert trip_of(again(message)).handler == handler


@pytest.mark.parametrize("expires", [b"1999999", b"2000001", b"soon"])
def test_when_it_is_too_late_to_start_it_is_forgotten(expires: bytes):
    assert header(again(letter("a", headers=((EXPIRES, expires),))).headers, EXPIRES) is None


def test_a_trip_that_can_not_be_read_is_mended():
    record = again(letter("a", headers=((TRIP, b"not json"),), failure=Failure("unreadable", "", "")))
    assert trip_of(record) == Trip(origin=("feed", 3, 17), published_ms=900_000, retried=1, retried_ms=NOW_MS)


def test_what_is_no_invocation_is_called_by_its_place():
    original = Record(17, 900_000, b"k", b"\xffjunk", ())
    message = dead_letter("feed", "", FEED, original, Failure("unreadable", "SerializationError", "no"), 1_000_000)
    assert (kept(message).id, kept(message).name) == (None, "2@5")
    assert (again(message).key, again(message).value) == (b"k", b"\xffjunk")


def test_what_others_put_there_has_a_time_and_an_id():
    found = kept(Message(b'{"task": "shop.pack"}'))
    assert (found.task, found.time_ms, found.reason, found.origin) == ("shop.pack", 1_000_001, "", None)
    assert found.id == format_id(derive_id("feed.dead", 2, 5))
    assert trip_of(again(Message(b'{"task": "shop.pack"}'))) == Trip(id=found.id, retried=1, retried_ms=NOW_MS)


NAMES = st.sampled_from(["time", "offset", "partition", "topic", "task", "reason", "published"]).map(PREFIX.__add__)
HEADERS = st.lists(st.tuples(NAMES | st.sampled_from([TRIP, EXPIRES, "x"]), st.binary() | st.just(b"7"))).map(tuple)


@given(st.none() | st.binary(), st.none() | st.binary(), HEADERS)
def test_whatever_is_there_can_be_read_and_sent_again(value, key, headers):
    record = again(Message(value, key, headers))
    assert (record.key, record.value) == (key, value)
    assert trip_of(record).retried >= 1
    assert not [name for name, _ in record.headers if name.startswith(PREFIX)]
