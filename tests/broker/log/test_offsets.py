from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskq.broker.log.files import RealFiles
from taskq.broker.log.offsets import (
    COMMITS_UNSYNCED_MAX,
    FILE_BYTES,
    OWNER_BYTES,
    SLOT_BYTES,
    SLOT_POSITIONS,
    Lease,
    encode_slot,
    peek,
    read,
)
from taskq.broker.port import COMMIT_METADATA_BYTES_MAX, Committed


def take(root: Path, owner: str) -> Lease | None:
    return Lease.take(RealFiles(), str(root), "feed", "posts", 3, owner)


def look(root: Path) -> tuple[str, Committed | None]:
    return peek(RealFiles(), str(root), "feed", "posts", 3)


def lease_file(root: Path) -> Path:
    return root / "groups" / "feed" / "topics" / "posts" / "3"


def test_a_lease_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    """Guarantee 3: whatever two members think is due to them."""
    first = take(tmp_path, "first")
    assert first is not None
    assert take(tmp_path, "second") is None
    assert look(tmp_path) == ("first", None)
    first.release()
    assert look(tmp_path) == ("", None)
    second = take(tmp_path, "second")
    assert second is not None
    assert look(tmp_path) == ("second", None)
    second.release()


def test_the_last_commit_holds_and_goes_with_the_lease(tmp_path: Path) -> None:
    lease = take(tmp_path, "first")
    assert lease is not None
    for number in range(5):
        lease.commit(Committed(number, bytes([number]) * number), 10_000)
        assert look(tmp_path)[1] == Committed(number, bytes([number]) * number)
    lease.release()
    again = take(tmp_path, "second")
    assert again is not None
    assert again.committed == Committed(4, b"\4" * 4)
    again.commit(Committed(9), 10_000)
    assert look(tmp_path)[1] == Committed(9)
    again.release()


@pytest.mark.parametrize("commits", [1, 2, 3])
def test_a_commit_that_was_torn_leaves_the_one_before(tmp_path: Path, commits: int) -> None:
    lease = take(tmp_path, "first")
    assert lease is not None
    for number in range(commits):
        lease.commit(Committed(number, b"metadata"), 10_000)
    lease.release()
    whole = lease_file(tmp_path).read_bytes()
    slot = SLOT_POSITIONS[1 + (commits & 1)]  # the first is what had been synced
    torn = encode_slot(commits + 1, Committed(1000, b"x" * COMMIT_METADATA_BYTES_MAX), 10_000)
    for size in (1, 4, 20, 30, 2000, len(torn) - 1):
        lease_file(tmp_path).write_bytes(whole[:slot] + torn[:size] + whole[slot + size :])
        assert look(tmp_path)[1] == Committed(commits - 1, b"metadata")


@given(st.binary(max_size=FILE_BYTES))
def test_any_bytes_are_read_without_an_error(raw: bytes) -> None:
    assert read(raw)[1] is None


@given(st.integers(0, 1 << 62), st.integers(1, 1 << 62), st.binary(max_size=COMMIT_METADATA_BYTES_MAX))
def test_a_commit_comes_back_as_it_was(offset: int, sequence: int, metadata: bytes) -> None:
    raw = b"owner".ljust(OWNER_BYTES, b"\0") + encode_slot(sequence, Committed(offset, metadata), 10_000)
    assert read(raw) == ("owner", Committed(offset, metadata), sequence)


def test_the_commit_that_was_synced_outlives_all_that_were_not(tmp_path: Path) -> None:
    lease = take(tmp_path, "first")
    assert lease is not None
    for number in range(COMMITS_UNSYNCED_MAX + 5):
        lease.commit(Committed(number), 10_000)
    lease.release()
    raw = bytearray(lease_file(tmp_path).read_bytes())
    torn = [encode_slot(number + 1, Committed(number), 10_000) for number in range(COMMITS_UNSYNCED_MAX + 5)]
    for slot in torn[-2:]:
        at = raw.index(slot)
        raw[at : at + SLOT_BYTES] = bytes(SLOT_BYTES)
    assert read(bytes(raw))[1] == Committed(COMMITS_UNSYNCED_MAX - 1)
