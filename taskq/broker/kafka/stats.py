"""librdkafka's statistics as metrics. What it tells: its STATISTICS.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from taskq.definitions import (
    KAFKA_BROKER_UP,
    KAFKA_GROUP_REBALANCES,
    KAFKA_RECEIVED_BYTES,
    KAFKA_REQUEST_ERRORS,
    KAFKA_REQUEST_SECONDS,
    KAFKA_SENT_BYTES,
    KAFKA_WAITING_BYTES,
    KAFKA_WAITING_MESSAGES,
)
from taskq.metrics import Sample

QUANTILES: Final = {"p50": "0.5", "p99": "0.99"}


class Stats:
    """The latest of each client of an opened broker: "producer", "member of feed", "fetcher"."""

    def __init__(self) -> None:
        self._latest: dict[str, dict[str, Any]] = {}

    def of(self, client: str) -> Callable[[str], None]:
        """What a client is to call with its statistics, as JSON."""

        def take(text: str) -> None:
            self._latest[client] = json.loads(text)

        return take

    def forget(self, client: str) -> None:
        """It has been closed."""
        self._latest.pop(client, None)

    def samples(self) -> Iterator[Sample]:
        """For `Metrics.add_source`."""
        for client, told in list(self._latest.items()):
            if told["type"] == "producer":
                yield Sample(KAFKA_WAITING_MESSAGES, (client,), told["msg_cnt"])
                yield Sample(KAFKA_WAITING_BYTES, (client,), told["msg_size"])
            if "cgrp" in told:
                yield Sample(KAFKA_GROUP_REBALANCES, (client,), told["cgrp"]["rebalance_cnt"])
            for broker in told["brokers"].values():
                if broker["nodeid"] >= 0:  # else it is one that was named, before it has said who it is
                    yield from _of_broker((client, str(broker["nodeid"])), broker)


def _of_broker(labels: tuple[str, str], told: dict[str, Any]) -> Iterator[Sample]:
    yield Sample(KAFKA_BROKER_UP, labels, int(told["state"] == "UP"))
    yield Sample(KAFKA_SENT_BYTES, labels, told["txbytes"])
    yield Sample(KAFKA_RECEIVED_BYTES, labels, told["rxbytes"])
    yield Sample(KAFKA_REQUEST_ERRORS, labels, told["txerrs"] + told["rxerrs"] + told["req_timeouts"])
    for name, quantile in QUANTILES.items():
        yield Sample(KAFKA_REQUEST_SECONDS, (*labels, quantile), told["rtt"][name] / 1e6)
