"""Brokers that have just begun: what they can't tell yet is asked again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError

from taskq.broker.kafka import KafkaBroker
from taskq.broker.port import GroupDescription
from taskq.errors import BrokerUnavailable

LOADING = KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
AWAY = KafkaError(KafkaError._TRANSPORT)


class Listed:
    """What an admin client answers."""

    def __init__(self, groups: list[str], errors: list[KafkaError]) -> None:
        self.valid = [Group(name) for name in groups]
        self.errors = errors


class Group:
    def __init__(self, name: str) -> None:
        self.group_id = name


def listing(answers: Iterator[Listed], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An admin whose brokers answer this, one after the other."""
    admin = KafkaBroker("kafka://127.0.0.1:1?socket.timeout.ms=300").admin()

    class Client:
        def list_consumer_groups(self, **_: object) -> Future[Listed]:
            future: Future[Listed] = Future()
            future.set_result(next(answers))
            return future

    monkeypatch.setattr(admin, "_client", Client)
    return admin


def test_groups_are_asked_for_again_while_a_broker_loads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [Listed([], [LOADING]), Listed(["feed"], [LOADING]), Listed(["feed", "mail"], [])]
    admin = listing(iter(answers), monkeypatch)
    monkeypatch.setattr(admin, "describe_group", lambda name: GroupDescription(name, {"member": ()}, {}, {}))
    assert admin.groups() == ["feed", "mail"]


def test_what_others_tell_counts_while_one_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    assert listing(iter([Listed(["feed"], [AWAY])]), monkeypatch)._list_groups() == ["feed"]


def test_a_broker_that_never_ends_loading_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever() -> Iterator[Listed]:
        while True:
            yield Listed(["feed"], [LOADING])

    with pytest.raises(BrokerUnavailable, match=r"listing the groups.*load in progress"):
        listing(forever(), monkeypatch).groups()
