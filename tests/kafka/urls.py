"""URLs of clusters, with settings that suit tests."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from tests.kafka.cluster import Cluster

QUICK = {
    "heartbeat.interval.ms": "200",
    "session.timeout.ms": "6000",
    "topic.metadata.refresh.interval.ms": "300",
}
"""Members soon hear of each other, of their deaths and of partitions."""


def url(cluster: Cluster, settings: Mapping[str, object] = {}, protocol: str = "PLAINTEXT") -> str:
    """The URL of one of the cluster's listeners. `settings` are librdkafka's, added to QUICK."""
    return f"kafka://{cluster.listener(protocol)}?{urlencode({**QUICK, **settings}, safe='/')}"
