"""What the simulated power cuts of a bounded number of fresh seeds find, and those of seeds that once found something.

`python -m tests.simulation` runs them by the ten thousand.
"""

from __future__ import annotations

import secrets
import time

import pytest

from tests.simulation.counts import Counts
from tests.simulation.run import run

FRESH_S = 12.0
CUTS_MIN = 20


def test_fresh_seeds_find_nothing() -> None:
    counts = Counts()
    until = time.monotonic() + FRESH_S
    while time.monotonic() < until or counts.cuts < CUTS_MIN:
        seed = secrets.randbelow(1 << 32)
        error = run(seed, counts)
        assert error is None, f"python -m tests.simulation --seed {seed}: {error!r}"
    print(f"{counts.cuts} power cuts, {counts.records_checked} records checked")
    assert counts.records_checked > counts.cuts


ONCE_FOUND = {
    15: "a checkpoint outlived the name of its log",
    33: "a head cut short by a full disk",
    59: "topics whose directory was not durable when the next process found it",
    64: "a commit cut short by a full disk",
    10166: "a repair wrote over what was durable",
    10198: "a commit that recovery had brought back was back itself",
    10269: "a segment's name outlived that of the one before",
    20646: "two torn commits uncovered one of long ago",
    31062: "a sync said that what a repair had lost was durable",
    40111: "a killed append came back in the place of another",
    41199: "a killed append came back in the place of another",
    702792: "a time index that was wrong ended retention",
}
"""Seed -> what it found when it first ran. What a seed does changes with the engine's calls; the list is cheap."""


@pytest.mark.parametrize("seed", sorted(ONCE_FOUND))
def test_seeds_that_once_found_something(seed: int) -> None:
    error = run(seed, Counts())
    assert error is None, f"{ONCE_FOUND[seed]}; python -m tests.simulation --seed {seed}: {error!r}"


def test_a_seed_replays_word_by_word() -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        assert run(7, Counts(), lines.append) is None
    assert told[0] == told[1]
    assert len(told[0]) > 10
