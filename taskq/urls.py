"""URLs of brokers: `file:///path`, `memory:` and `kafka://h1:9092,h2:9092?security.protocol=SSL&...`. Pure.

What follows the question mark of the last are librdkafka's own settings, by their own names. Some of them are secrets,
so what is shown to people is `KafkaUrl.shown`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from attrs import frozen

from taskq.errors import ConfigError

PORT: Final = 9092

OURS: Final = frozenset(
    "acks allow.auto.create.topics auto.commit.enable auto.commit.interval.ms auto.offset.reset bootstrap.servers "
    "default.topic.config delivery.report.only.error enable.auto.commit enable.auto.offset.store enable.idempotence "
    "enable.partition.eof group.id metadata.broker.list request.required.acks transactional.id".split()
)
"""Settings that taskq's promises hang on."""

_CODE: Final = ("_cb", "on_delivery", "on_commit", "logger")
"""How the names of settings end that are Python's functions and objects."""

ASSIGNOR: Final = "cooperative-sticky"
"""The only way to share partitions, in groups that their members lead, that moves only those that have to."""

_SERVER = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_NAME = re.compile(r"[a-z0-9]+([._][a-z0-9]+)*", re.ASCII)


def of_file(text: str) -> str:
    """As it is written everywhere. Raises ConfigError if it is not absolute."""
    parts = urlsplit(text)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or parts.query or parts.fragment:
        raise ConfigError(f"{text!r} is not file:///an/absolute/path; write a relative path without file:")
    return Path(os.path.normpath(path)).as_uri()


def path_of(url: str) -> Path:
    """The directory that an absolute `file:///...` URL names."""
    return Path(unquote(urlsplit(url).path))


def of_memory(text: str) -> str:
    """As it is written everywhere. Raises ConfigError if it says more."""
    if text.lower() not in ("memory:", "memory://"):
        raise ConfigError(f"{text!r}: nothing may follow memory:")
    return "memory:"


def of_kafka(text: str) -> str:
    """As it is written everywhere. Raises ConfigError for what is none, without repeating what may be secret."""
    return str(parse_kafka(text))


@frozen
class KafkaUrl:
    """Where a cluster is, and how to talk to it."""

    servers: tuple[str, ...]
    """HOST:PORT of some brokers; they know the others."""
    settings: Mapping[str, str]
    """librdkafka's."""

    def __str__(self) -> str:
        query = urlencode(dict(self.settings), safe="/:,@")
        return self.shown + (f"?{query}" if query else "")

    @property
    def shown(self) -> str:
        """Without the settings: there may be secrets among them."""
        return f"kafka://{','.join(self.servers)}"


def shown(url: str) -> str:
    """A broker's URL as people and logs may see it: without settings, of which some are secrets."""
    return parse_kafka(url).shown if url.startswith("kafka:") else url


def parse_kafka(url: str) -> KafkaUrl:
    """Read a URL of Kafka. Raises ConfigError, which does not repeat the settings."""
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    if scheme.lower() != "kafka":
        raise ConfigError(f"{scheme}: is not kafka://HOST:PORT,HOST:PORT,...")
    if "@" in place:
        raise ConfigError(
            "a Kafka URL has no user before the host; write ?sasl.username=...&sasl.password=...&sasl.mechanism=... "
            "after the hosts, and security.protocol=SASL_SSL"
        )
    servers = tuple(_server(one.strip(), place) for one in place.rstrip("/").split(","))
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=200)
    except ValueError:
        raise ConfigError(
            f"{KafkaUrl(servers, {}).shown}: after the ? come settings, as name=value&name=value"
        ) from None
    names = [name for name, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{KafkaUrl(servers, {}).shown} sets {min(twice)} twice")
    return KafkaUrl(servers, check_kafka(dict(pairs)))


def check_kafka(settings: Mapping[str, object]) -> dict[str, str]:
    """Settings of librdkafka as text. Raises ConfigError for one that taskq needs to be as it is."""
    checked = {}
    for name, value in settings.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} can't be the name of a setting of librdkafka; one is socket.timeout.ms")
        if name in OURS:
            raise ConfigError(f"{name} can't be set: taskq sets it itself, and its promises hang on it")
        if name.endswith(_CODE):
            raise ConfigError(f"{name} can't be set: it is a function or an object of Python, which no text can name")
        if not isinstance(value, str | int | float):
            raise ConfigError(f"{name} is neither text nor a number: {type(value).__name__}")
        checked[name] = str(value).lower() if isinstance(value, bool) else str(value)
    _check_group(checked)
    return checked


def _check_group(settings: Mapping[str, str]) -> None:
    """Refuse what members of one group could not be with each other."""
    if "group.instance.id" in settings:
        raise ConfigError(
            "group.instance.id can't be set: a worker is several members of its group, and so are all workers with the "
            "same settings; of those with one id Kafka lets only the latest be a member"
        )
    strategy = settings.get("partition.assignment.strategy", ASSIGNOR)
    if strategy != ASSIGNOR:
        raise ConfigError(
            f"partition.assignment.strategy can't be {strategy!r}, only {ASSIGNOR!r}: all others take every partition "
            "from every member with each rebalance, and so what runs in it; leave it out"
        )


def _server(text: str, place: str) -> str:
    match = _SERVER.fullmatch(text)
    port = int(match[2] or PORT) if match else 0
    if match is None or not 0 < port < 65536:
        raise ConfigError(f"'kafka://{place}' is not kafka://HOST:PORT,HOST:PORT,...")
    return f"{match[1]}:{port}"
