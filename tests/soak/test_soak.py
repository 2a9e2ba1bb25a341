"""Each long run, in short. `make soak` runs them long."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from tests.kafka.jars import Jars
from tests.soak import life, order, rate, rolling


@pytest.mark.timeout(180)
def test_keys_stay_in_order_while_workers_come_and_go(tmp_path: Path) -> None:
    found = order.run(tmp_path, keys=30, each=40, changes=2, seed=secrets.randbelow(1 << 32))
    assert found.lost == 0, found
    assert found.disorders == (), found
    assert found.retries > 0, found


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_a_rate_is_the_groups_however_many_workers_there_are(tmp_path: Path) -> None:
    found = rate.run(tmp_path, seconds=9)
    assert found.is_kept, found


@pytest.mark.timeout(240)
def test_every_invocation_has_exactly_one_outcome(tmp_path: Path) -> None:
    found = life.run(tmp_path, seconds=12, seed=secrets.randbelow(1 << 32), rounds_per_s=5)
    assert found.is_well, found
    assert found.published > 1000


@pytest.mark.alone
@pytest.mark.timeout(240)
def test_nothing_is_lost_while_kafkas_nodes_are_killed(kafka_jars: Jars, tmp_path: Path) -> None:
    found = rolling.run(tmp_path, seconds=36, every_s=18, count=8000)
    assert found.is_well, found
    assert found.kills == 2
    assert found.repeats < 1000, found
