"""Which topics are others than they were, by the ids that brokers give them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import Uuid
from confluent_kafka.admin import AdminClient  # pyright: ignore[reportPrivateImportUsage]

from taskq.broker.kafka.remakes import ID_LENGTH, LOOK_S, Remakes, id_of

NONE, ONE, OTHER = Uuid(0, 0), Uuid(5, 6), Uuid(7, 8)


def looking(answers: Sequence[Uuid]) -> Remakes:
    """Asks brokers that answer this, one after the other."""
    left = list(answers)

    class Client:
        def describe_topics(self, _: object) -> dict[str, Future[Any]]:
            future: Future[Any] = Future()
            future.set_result(SimpleNamespace(topic_id=left.pop(0)))
            return {"feed": future}

    return Remakes(lambda: cast("AdminClient", Client()))


def told(remakes: Remakes, times: int) -> list[list[str]]:
    found = []
    for number in range(times):
        assert remakes.look(number * (LOOK_S + 1), ["feed"]) == [], "it has only been asked"
        found.append(remakes.look(number * (LOOK_S + 1), ["feed"]))
    return found


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        ([ONE, ONE, OTHER, OTHER], [[], [], ["feed"], []]),
        ([NONE, ONE, NONE, ONE], [[], [], [], []]),  # brokers are being updated to Kafka 2.8, one after the other
    ],
)
def test_a_topic_is_another_if_its_id_is(answers: list[Uuid], wanted: list[list[str]]) -> None:
    assert told(looking(answers), len(answers)) == wanted


def test_who_has_asked_otherwise_has_it_found_out_soon() -> None:
    remakes = looking([ONE, OTHER])
    assert told(remakes, 1) == [[]]
    remakes.learn("feed", "another")
    assert remakes.look(0.0, ["feed"]) == []
    assert remakes.look(0.0, ["feed"]) == ["feed"]


def test_ids_are_as_long_as_commits_take_them_to_be() -> None:
    assert len(str(ONE)) == ID_LENGTH
    assert id_of(cast("Any", SimpleNamespace(topic_id=NONE))) is None
