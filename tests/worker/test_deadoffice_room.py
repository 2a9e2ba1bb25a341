"""Making room: progress in dead letters fits a commit whatever is resolved, and nothing is lost or resolved twice.

With tiny limits, so that room is made all the time, against a model: the letters there are, by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskq.broker import connect
from taskq.broker.port import Broker, Committed, TopicPartition
from taskq.config import load_settings
from taskq.message import decode_envelope
from taskq.worker import deadoffice, progress
from taskq.worker.deadoffice import ALL, RESOLVED, Filter, list_dead, purge_dead, retry_dead
from taskq.worker.gauges import dead_letters
from taskq.worker.holding import Held
from taskq.worker.progress import ENCODED_BYTES_MAX
from tests.worker.letters import bury, letter, sent_to_retry

TINY = {"ENCODED_BYTES_MAX": 10, "HOLES_MAX": 60, "SPAN_MAX": 30, "BATCH_MAX": 7, "RUNS_MAX": 2, "_LOOK_BYTES": 1500}
LETTERS_MAX = 150

Action = tuple[bool, frozenset[int] | int]
"""Whether it is to retry, or to purge; and what: letters by number, or all of a task."""

picks = st.frozensets(st.integers(0, LETTERS_MAX - 1), min_size=1, max_size=40)
strides = st.tuples(st.integers(0, 20), st.integers(2, 9)).map(lambda s: frozenset(range(s[0], LETTERS_MAX, s[1])))
chosen = picks | strides | st.integers(2, 9)  # some, every n-th by id, or every n-th by task
steps = st.lists(st.tuples(st.booleans(), chosen), min_size=1, max_size=6)


@contextmanager
def tiny(**limits: int) -> Iterator[list[int]]:
    """Limits that are soon reached. Gives how long what was committed is."""
    lengths: list[int] = []
    commit = Held.commit

    def watched(held: Held, tp: TopicPartition, committed: Committed) -> None:
        lengths.append(len(committed.metadata))
        commit(held, tp, committed)

    with pytest.MonkeyPatch.context() as patch:
        limits = {**TINY, **limits}
        for name, value in limits.items():
            patch.setattr(deadoffice, name, value)
        patch.setattr(progress, "HOLES_MAX", limits["HOLES_MAX"])
        patch.setattr(Held, "commit", watched)
        yield lengths


def make_letters(broker: Broker, count: int) -> None:
    for number in range(count):  # one by one: a batch is never split when it is read
        bury(broker, [letter(f"{number}", task=f"every.{number % 60}", key=b"%d" % number)])


def left(broker: Broker) -> Counter[str]:
    return Counter(str(found.id) for found in list_dead(broker, "feed"))


def check(broker: Broker, actions: Sequence[Action], count: int, lengths: list[int]) -> None:
    make_letters(broker, count)
    there, retried = set(range(count)), Counter[str]()
    for is_retry, which in actions:
        act = retry_dead if is_retry else purge_dead
        if isinstance(which, int):
            meant = {number for number in there if number % 60 == which}
            resolved = act(broker, "feed", Filter(task=f"every.{which}"))
        else:
            meant = there & which
            resolved = act(broker, "feed", [str(number) for number in meant]) if meant else 0
        assert resolved == len(meant)
        there -= meant
        retried.update(str(number) for number in meant if is_retry)
        assert left(broker) == Counter(map(str, there))
        assert dead_letters(broker.admin(), "feed") == len(there)
    assert Counter(str(decode_envelope(record.value).id) for record in sent_to_retry(broker)) == retried
    assert max(lengths, default=0) <= TINY["ENCODED_BYTES_MAX"]
    assert retry_dead(broker, "feed", ALL) == len(there)
    assert dead_letters(broker.admin(), "feed") == 0


def opened(url: str | Path, partitions: int = 1) -> Broker:
    return connect(load_settings(broker=url, partitions=partitions, environ={}))


@given(steps, st.integers(1, LETTERS_MAX), st.integers(1, 5), st.sampled_from([60, 1000]))
def test_whatever_is_resolved_the_others_are_kept_and_what_is_committed_fits(
    actions: Sequence[Action], count: int, runs: int, holes: int
):
    with tiny(RUNS_MAX=runs, HOLES_MAX=holes) as lengths:
        broker = opened("memory:")
        check(broker, actions, count, lengths)
        broker.close()


@settings(max_examples=15)
@given(steps)
def test_in_a_log_too(tmp_path_factory: pytest.TempPathFactory, actions: Sequence[Action]):
    with tiny() as lengths:
        broker = opened(tmp_path_factory.mktemp("log"), 2)
        check(broker, actions, 100, lengths)
        broker.close()


@pytest.mark.parametrize("is_upwards", [True, False])
def test_one_by_one_in_any_order_moves_others_and_says_so(is_upwards: bool, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "taskq.worker")
    with tiny() as lengths:
        broker = opened("memory:")
        numbers = list(range(0, 120, 2))
        steps = [(False, frozenset({number})) for number in (numbers if is_upwards else reversed(numbers))]
        check(broker, steps, 120, lengths)
        broker.close()
    assert "moved to its end" in caplog.text


def test_what_is_in_pieces_above_leaves_no_room_for_a_batch_so_its_runs_are_resolved_one_by_one():
    steps = [(False, frozenset({number})) for number in (100, 102, 104)]
    with tiny(RUNS_MAX=5, HOLES_MAX=1000, SPAN_MAX=1000) as lengths:
        broker = opened("memory:")
        check(broker, [*steps, (True, frozenset({10, 11, 20, 30, 40, 50}))], 120, lengths)
        broker.close()


def test_moved_letters_are_as_they_were():
    def look() -> dict[str | None, tuple[object, ...]]:
        return {found.id: found.record[2:] for found in list_dead(broker, "feed")}

    with tiny():
        broker = opened("memory:")
        make_letters(broker, 150)
        before = look()
        assert purge_dead(broker, "feed", [f"{number}" for number in range(1, 150, 3)]) == 50
        after = look()
        assert after.items() <= before.items()
        assert len(after) == 100
        (bounds,) = broker.admin().describe_topic("feed.dead").partitions
        assert bounds.end > 150
        broker.close()


def test_a_death_while_room_is_made_loses_nothing():
    """What was being moved is there twice then, and nothing is gone."""
    with tiny():
        broker = opened("memory:")
        make_letters(broker, 150)
        with pytest.MonkeyPatch.context() as patch:
            commits = [0]
            commit = Held.commit

            def dies(held: Held, tp: TopicPartition, committed: Committed) -> None:
                commits[0] += 1
                if commits[0] == 30:
                    raise KeyboardInterrupt
                commit(held, tp, committed)

            patch.setattr(Held, "commit", dies)
            with pytest.raises(KeyboardInterrupt):
                purge_dead(broker, "feed", [f"{number}" for number in range(1, 150, 3)])
        assert commits == [30]
        found = left(broker)
        kept = {str(number) for number in range(150) if number % 3 != 1}
        assert kept <= set(found)
        assert found.total() <= len(set(found)) + TINY["BATCH_MAX"]
        broker.close()


def test_with_the_real_limits_a_few_thousand_need_no_room():
    broker = opened("memory:")
    bury(broker, [letter(f"{number}", task=f"every.{number % 2}") for number in range(20_000)])
    assert purge_dead(broker, "feed", Filter(task="every.0")) == 10_000
    assert sum(bounds.end for bounds in broker.admin().describe_topic("feed.dead").partitions) == 20_000
    committed = broker.admin().describe_group(RESOLVED).committed
    assert max(len(one.metadata) for one in committed.values()) <= ENCODED_BYTES_MAX
    broker.close()
