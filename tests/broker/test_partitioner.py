"""Partition choice against Kafka's own vectors, and the fairness of the spread."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.partitioner import BATCH_RECORDS, Spread, murmur2, partition_for_key

# From Kafka's UtilsTest.testMurmur2; the digits from the tests of Akka and Pekko, made with Kafka's implementation.
VECTORS = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    b"1": -1993445489,
    b"12": 126087238,
    b"123": -267702483,
    b"1234": -1614185708,
    b"12345": -1188365604,
}


@pytest.mark.parametrize("key", VECTORS)
def test_the_hash_is_kafkas(key: bytes) -> None:
    assert murmur2(key) == VECTORS[key]


@pytest.mark.parametrize("key", VECTORS)
def test_the_partition_of_a_key_is_kafkas(key: bytes) -> None:
    for partitions in (1, 3, 8, 1000):
        assert partition_for_key(key, partitions) == (VECTORS[key] & 0x7FFFFFFF) % partitions


@given(st.binary(max_size=600), st.integers(1, 10_000))
def test_a_key_has_one_partition(key: bytes, partitions: int) -> None:
    assert 0 <= partition_for_key(key, partitions) == partition_for_key(bytes(key), partitions) < partitions


@pytest.mark.parametrize("partitions", [1, 2, 8, 100])
def test_records_without_a_key_go_to_the_next_partition_after_each_batch(partitions: int) -> None:
    spread = Spread(partitions)
    turns = [[spread.next() for _ in range(BATCH_RECORDS)] for _ in range(2 * partitions)]
    assert all(len(set(turn)) == 1 for turn in turns)
    order = [turn[0] for turn in turns]
    assert order == [(order[0] + number) % partitions for number in range(2 * partitions)]


def test_processes_do_not_all_begin_with_the_same_partition() -> None:
    assert len({Spread(8).next() for _ in range(200)}) > 1


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_a_split_is_all_of_it_in_contiguous_shares_equal_within_one(count: int, partitions: int) -> None:
    shares = list(Spread(partitions).split(count))
    assert [index for _, share in shares for index in share] == list(range(count))
    assert all(share for _, share in shares)
    assert len({partition for partition, _ in shares}) == len(shares) == min(count, partitions)
    lengths = [len(share) for _, share in shares]
    assert not lengths or max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("count", [1, 3, 8, 13, 1001])
def test_splits_are_fair_over_many_calls(count: int) -> None:
    spread = Spread(8)
    total: Counter[int] = Counter()
    for _ in range(8):
        for partition, share in spread.split(count):
            total[partition] += len(share)
    assert set(total.values()) == {count}
