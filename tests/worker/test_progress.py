"""Progress against the model that is obviously right: the set of finished offsets."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.worker.progress import ENCODED_BYTES_MAX, HOLES_MAX, OFFSET_MAX, Progress, count_finished

START = 1000


class Model:
    def __init__(self) -> None:
        self.finished: set[int] = set()

    @property
    def low(self) -> int:
        low = START
        while low in self.finished:
            low += 1
        return low

    def above(self) -> set[int]:
        return {offset for offset in self.finished if offset > self.low}


def steps() -> st.SearchStrategy[list[list[int]]]:
    offsets = st.integers(START - 5, START + 300)
    ranges = st.tuples(offsets, st.integers(0, 200)).map(lambda pair: list(range(pair[0], sum(pair))))
    shuffled = ranges.flatmap(st.permutations).map(list)
    almost = st.tuples(ranges, st.lists(offsets, max_size=3)).map(lambda pair: [o for o in pair[0] if o not in pair[1]])
    return st.lists(st.lists(offsets) | ranges | shuffled | almost, max_size=12)


def assert_same(progress: Progress, model: Model) -> None:
    assert progress.low == model.low
    assert progress.finished_above == len(model.above())
    assert progress.high == max([*model.above(), model.low - 1]) + 1
    for offset in range(START - 10, START + 520):
        assert progress.is_finished(offset) == (offset < START or offset in model.finished)


@given(steps())
def test_finished_is_what_was_finished_in_any_order_and_any_number_of_times(steps: list[list[int]]) -> None:
    progress, model = Progress(START), Model()
    for offsets in steps:
        given_offsets = list(offsets)
        progress.finish(offsets)
        model.finished.update(offset for offset in offsets if offset >= START)
        assert offsets == given_offsets
    assert_same(progress, model)


@given(steps(), st.integers(START - 20, START + 600), st.integers(-5, 300))
def test_a_range_is_the_same_as_its_offsets(steps: list[list[int]], start: int, length: int) -> None:
    progress, model = Progress(START), Model()
    for offsets in steps:
        progress.finish(offsets)
        model.finished.update(offset for offset in offsets if offset >= START)
    progress.finish_range(start, start + length)
    model.finished.update(range(max(start, START), start + length))
    assert progress.low == model.low
    assert progress.finished_above == len(model.above())
    assert list(progress.unfinished(START + 1000)) == _ranges_of(set(range(START, START + 1000)) - model.finished)


@given(steps(), st.integers(START - 20, START + 600))
def test_unfinished_is_the_complement_below_stop(steps: list[list[int]], stop: int) -> None:
    progress, finished = Progress(START), set()
    for offsets in steps:
        progress.finish(offsets)
        finished.update(offsets)
    ranges = list(progress.unfinished(stop))
    assert all(ranges), "no empty range"
    assert ranges == _ranges_of(set(range(START, stop)) - finished)


def _ranges_of(offsets: set[int]) -> list[range]:
    return [
        range(first, next(o for o in range(first, first + len(offsets) + 1) if o not in offsets))
        for first in sorted(offsets)
        if first - 1 not in offsets
    ]


@given(steps())
def test_decode_of_encode_is_the_same_progress(steps: list[list[int]]) -> None:
    progress, model = Progress(START), Model()
    for offsets in steps:
        progress.finish(offsets)
        model.finished.update(offset for offset in offsets if offset >= START)
        progress.encode()  # a stale cache would show in the end
    decoded = Progress.decode(progress.low, progress.encode())
    assert_same(decoded, model)
    assert decoded.encode() == progress.encode()
    decoded.finish([progress.high])
    progress.finish([progress.high])
    assert (decoded.low, decoded.encode()) == (progress.low, progress.encode())


@given(st.integers(0, OFFSET_MAX), st.binary(max_size=40))
def test_metadata_that_is_garbage_is_refused_or_means_something_that_encodes(offset: int, metadata: bytes) -> None:
    try:
        progress = Progress.decode(offset, metadata)
    except ValueError:
        return
    assert progress.low == offset
    again = Progress.decode(offset, progress.encode())
    assert list(again.unfinished(progress.high)) == list(progress.unfinished(progress.high))


@pytest.mark.parametrize(
    ("offset", "metadata"),
    [
        (-1, b""),
        (OFFSET_MAX + 1, b""),
        (0, b"\x00"),
        (0, b"\x03\x01\x01"),
        (0, b"\x01"),
        (0, b"\x01\x05"),
        (0, b"\x01\x05\x00"),
        (0, b"\x01\x00\x05"),
        (0, b"\x01\x05\x85"),
        (0, b"\x01\x05" + b"\xff" * 10 + b"\x01"),
        (0, b"\x01\x01\x01" + b"\xff\xff\xff\xff\x7f" + b"\x01"),
        (OFFSET_MAX - 1, b"\x01\x01\x01"),
        (0, b"\x02"),
        (0, b"\x02\x01\x00"),
    ],
)
def test_metadata_no_progress_can_have_is_refused(offset: int, metadata: bytes) -> None:
    with pytest.raises(ValueError, match=r"progress|offset"):
        Progress.decode(offset, metadata)


def test_nothing_finished_above_needs_no_metadata() -> None:
    progress = Progress(START)
    assert progress.encode() == b""
    progress.finish(list(range(START, START + 50)))
    assert (progress.low, progress.encode()) == (START + 50, b"")
    assert Progress.decode(START + 50, b"").low == START + 50


def test_the_shorter_of_runs_and_bits_is_stored() -> None:
    one_slow = Progress(0)
    one_slow.finish_range(1, 10_000_000)
    assert one_slow.encode() == b"\x01\x01\xff\xac\xe2\x04"
    alternating = Progress(0)
    alternating.finish(list(range(1, 16_000, 2)))
    assert alternating.encode() == b"\x02" + b"\x55" * 2000


def test_a_slow_head_costs_no_memory_for_what_ends_above_it() -> None:
    progress = Progress(0)
    for start in range(1, 5_000_001, 5000):
        progress.finish(list(range(start, start + 5000)))
    assert (progress.low, progress.finished_above, progress._holes) == (0, 5_000_000, {0})


def test_an_offset_far_beyond_everything_is_refused_and_changes_nothing() -> None:
    progress = Progress(0)
    progress.finish([1])
    for offsets in ([HOLES_MAX + 10], [0, 2, 1 << 60]):
        with pytest.raises(ValueError, match="limit"):
            progress.finish(offsets)
        with pytest.raises(ValueError, match="limit"):
            progress.finish_range(offsets[-1], offsets[-1] + 1)
        assert (progress.low, progress.high, progress.finished_above) == (0, 2, 1)


def test_a_range_from_low_may_be_of_any_length() -> None:
    progress = Progress(0)
    progress.finish([5])
    progress.finish_range(0, 1 << 50)
    assert (progress.low, progress.encode()) == (1 << 50, b"")


@given(
    st.lists(st.integers(0, 2000), unique=True),
    st.lists(st.integers(0, 3000), max_size=20),
    st.integers(1, 400),
)
def test_what_fits_still_fits_after_as_many_more_as_announced(before: list[int], more: list[int], limit: int) -> None:
    progress = Progress(0)
    progress.finish(before)
    if progress.fits(limit, running=len(more), upto=3001):
        for offset in more:
            progress.finish([offset])
            assert len(progress.encode()) <= limit


@given(st.lists(st.integers(0, 5000)), st.integers(1, 700))
def test_fits_is_exact_about_what_is_there(offsets: list[int], limit: int) -> None:
    progress = Progress(0)
    progress.finish(offsets)
    assert progress.fits(limit) == (len(progress.encode()) <= limit)


def test_many_slow_ones_over_a_wide_range_do_not_fit() -> None:
    progress = Progress(0)
    slow = range(0, 3_000_000, 1000)
    for offset in slow:
        progress.finish_range(offset + 1, offset + 1000)
    assert not progress.fits()
    assert len(progress.encode()) > ENCODED_BYTES_MAX
    progress.finish(list(slow)[:2500])
    assert progress.fits()
    assert len(progress.encode()) <= ENCODED_BYTES_MAX


def test_sixteen_runners_never_come_near_the_limit() -> None:
    rng = random.Random(1)
    progress, running, following = Progress(0), list(range(16)), 16
    for _ in range(200):
        ended = []
        for _ in range(1000):
            slot = min(rng.randrange(16), rng.randrange(16))  # some runners are slower than others
            ended.append(running[slot])
            running[slot] = following
            following += 1
        progress.finish(ended)
        assert progress.low == min(running)
        assert len(progress.encode()) < 200
        assert progress.fits(running=16, upto=following)


@given(steps())
def test_how_much_is_finished_can_be_counted_as_it_is_stored(steps: list[list[int]]) -> None:
    progress = Progress(START)
    for offsets in steps:
        progress.finish(offsets)
        assert count_finished(progress.encode()) == progress.finished_above


def test_what_is_of_no_kind_can_not_be_counted() -> None:
    with pytest.raises(ValueError, match="unknown kind 9"):
        count_finished(b"\x09\x01")
