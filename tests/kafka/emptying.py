"""A cluster as if nothing had ever been in it, much quicker than by starting another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from tests.kafka.cluster import wait

if TYPE_CHECKING:
    from tests.kafka.cluster import Cluster
    from tests.kafka.node import Node

REQUEST_S = 10.0
KAFKAS_OWN = {"__consumer_offsets", "__share_group_state", "__transaction_state"}
GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND}


class Emptying:
    """What `Cluster.reset` does, by connections that stay: making them would take most of its time."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._admins: dict[int, AdminClient] = {}

    def run(self, within_s: float) -> None:
        """Delete all, and see that it is gone."""
        admins = [self._admin(node) for node in self._cluster.nodes if node.is_running and not node.is_paused]
        one, left = admins[0], [""]

        def is_empty() -> bool:
            topics, groups = _topics(one), _groups(one)
            left[:] = [*topics, *groups]
            _delete(one.delete_topics, topics)
            _delete(one.delete_consumer_groups, groups)
            return not left and not any(map(_topics, admins[1:]))

        if not wait(is_empty, within_s, every_s=0.005):
            raise AssertionError(f"these can't be deleted, nor could any group that has members: {left}")
        if self._cluster.has_acls:
            _delete_acls(one)

    def _admin(self, node: Node) -> AdminClient:
        if node.number not in self._admins:
            # Silent: that its node is killed is what tests do.
            self._admins[node.number] = AdminClient({"bootstrap.servers": node.address, "log_level": 0})
        return self._admins[node.number]


def _delete_acls(admin: AdminClient) -> None:
    whoever: Any = None  # as it is documented, not as it is typed
    every = AclBindingFilter(
        *(ResourceType.ANY, whoever, ResourcePatternType.ANY, whoever, whoever),
        *(AclOperation.ANY, AclPermissionType.ANY),
    )
    for future in admin.delete_acls([every]).values():
        future.result(REQUEST_S)


def _topics(admin: AdminClient) -> list[str]:
    return [name for name in admin.list_topics(timeout=REQUEST_S).topics if name not in KAFKAS_OWN]


def _groups(admin: AdminClient) -> list[str]:
    found = admin.list_consumer_groups(request_timeout=REQUEST_S).result(REQUEST_S)
    return [group.group_id for group in found.valid]


def _delete(call: Any, names: list[str]) -> None:
    if not names:
        return
    for future in call(names, request_timeout=REQUEST_S).values():
        try:
            future.result(REQUEST_S)
        except KafkaException as error:
            if error.args[0].code() not in {*GONE, KafkaError.NON_EMPTY_GROUP}:  # its members are about to leave
                raise
