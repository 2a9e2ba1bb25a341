"""What librdkafka is told."""

from __future__ import annotations

import logging

import pytest

from taskq.broker.kafka import KafkaBroker
from taskq.broker.kafka.conf import Conf, Sparing
from taskq.errors import ConfigError
from taskq.urls import check_kafka

GIVEN = {
    "client.id": "shop",
    "compression.type": "lz4",
    "fetch.wait.max.ms": "10",
    "isolation.level": "read_uncommitted",
    "linger.ms": "5",
    "max.partition.fetch.bytes": "2000000",
    "max.poll.interval.ms": "7000",
    "session.timeout.ms": "6000",
}


def conf(**more: str) -> Conf:
    return Conf(("h1:9092", "h2:9092"), {**GIVEN, **{name.replace("_", "."): value for name, value in more.items()}})


def test_each_client_is_told_what_it_knows():
    admin, producer, fetcher, member = conf().admin(), conf().producer(), conf().fetcher(), conf().member("feed")
    for told in (admin, producer, fetcher, member):
        assert told["bootstrap.servers"] == "h1:9092,h2:9092"
        assert told["client.id"] == "shop"
    assert {name: [name in told for told in (admin, producer, fetcher, member)] for name in GIVEN} == {
        "client.id": [True, True, True, True],
        "compression.type": [False, True, False, False],
        "fetch.wait.max.ms": [False, False, True, True],
        "isolation.level": [False, False, True, True],
        "linger.ms": [False, True, False, False],
        "max.partition.fetch.bytes": [False, False, True, True],
        "max.poll.interval.ms": [False, False, False, True],
        "session.timeout.ms": [False, False, False, True],
    }
    assert member["group.id"] == "feed"


def test_what_promises_hang_on_is_as_it_must_be():
    producer = conf().producer()
    assert (producer["acks"], producer["enable.idempotence"]) == ("all", "true")
    member = conf().member("feed")
    assert (member["enable.auto.commit"], member["enable.auto.offset.store"]) == ("false", "false")
    assert member["auto.offset.reset"] == "error"


def test_the_newer_protocol_of_groups_is_not_told_what_it_does_not_know():
    assert conf().member("feed")["partition.assignment.strategy"] == "cooperative-sticky"
    newer = conf(group_protocol="consumer").member("feed")
    assert not {"partition.assignment.strategy", "session.timeout.ms"} & newer.keys()


@pytest.mark.parametrize("strategy", ["range", "roundrobin", "cooperative-sticky,range", ""])
def test_a_way_to_share_that_takes_all_from_all_is_refused(strategy: str):
    with pytest.raises(ConfigError, match=r"^partition\.assignment\.strategy can't be .*with each rebalance"):
        check_kafka({"partition.assignment.strategy": strategy})
    assert check_kafka({"partition.assignment.strategy": "cooperative-sticky"})


def test_an_id_that_all_members_would_share_is_refused():
    with pytest.raises(ConfigError, match=r"^group\.instance\.id can't be set: a worker is several members"):
        check_kafka({"group.instance.id": "mine"})


def test_reports_of_what_was_stored_must_come():
    with pytest.raises(ConfigError, match=r"^delivery\.report\.only\.error can't be set: .*promises"):
        check_kafka({"delivery.report.only.error": True})


@pytest.mark.parametrize(
    "name",
    [
        "error_cb",
        "stats_cb",
        "throttle_cb",
        "oauth_cb",
        "ssl.certificate.verify_cb",
        "on_delivery",
        "on_commit",
        "logger",
    ],
)
def test_functions_are_no_settings(name: str):
    with pytest.raises(ConfigError, match=rf"^{name} can't be set: it is a function"):
        check_kafka({name: "print"})


@pytest.mark.parametrize(
    ("setting", "value"), [("oauth_cb", "print"), ("throttle_cb", "print"), ("delivery.report.only.error", "true")]
)
def test_what_the_client_of_python_does_not_take_is_named(setting: str, value: str):
    """Who opens a broker directly is not asked by `check_kafka`."""
    broker = KafkaBroker("kafka://127.0.0.1:1", settings={setting: value})
    with pytest.raises(ConfigError, match=rf"^opening a producer, on kafka://127\.0\.0\.1:1: .*{setting}"):
        _ = broker._outbox.client
    broker.close()


def test_times_must_be_numbers():
    assert conf().max_poll_s == 7.0
    assert conf(socket_timeout_ms="500").patience_s == 0.5
    with pytest.raises(ConfigError, match=r"max\.poll\.interval\.ms 'soon'"):
        _ = conf(max_poll_interval_ms="soon").max_poll_s


def test_what_may_be_secret_is_not_shown():
    assert "swordfish" not in repr(conf(sasl_password="swordfish"))


def test_what_librdkafka_repeats_is_logged_once():
    spare = Sparing()

    def is_told(text: str) -> bool:
        return spare.filter(logging.LogRecord("taskq.kafka", logging.ERROR, "", 0, "FAIL %s", (text,), None))

    assert is_told("one: refused (after 0ms in state CONNECT)")
    assert not is_told("one: refused (after 7ms in state CONNECT, 1 identical error(s) suppressed)")
    assert is_told("another: refused (after 0ms in state CONNECT)")
