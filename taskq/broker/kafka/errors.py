"""librdkafka's errors as ours."""

from __future__ import annotations

import time
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from taskq.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    MessageTooLarge,
    NotAuthorized,
    OffsetOutOfRange,
    StorageError,
    TaskqError,
    TopicNotFound,
)

UNKNOWN_TOPIC: Final = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError.INCONSISTENT_TOPIC_ID,
    }
)

TRANSIENT: Final = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.NOT_CONTROLLER,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.BROKER_NOT_AVAILABLE,
        KafkaError.NETWORK_EXCEPTION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.ILLEGAL_GENERATION,  # of a commit that was overtaken by a rebalance; who is out is an unknown member
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        KafkaError.OFFSET_NOT_AVAILABLE,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        KafkaError.PREFERRED_LEADER_NOT_AVAILABLE,
        KafkaError.REPLICA_NOT_AVAILABLE,
        KafkaError.THROTTLING_QUOTA_EXCEEDED,
        KafkaError.FETCH_SESSION_ID_NOT_FOUND,
        KafkaError.INVALID_FETCH_SESSION_EPOCH,
        KafkaError._TRANSPORT,
        KafkaError._TIMED_OUT,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
        KafkaError._WAIT_COORD,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._RESOLVE,
        KafkaError._RETRY,
    }
)
"""What may be otherwise the next time."""

NOT_OURS: Final = frozenset(
    {
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.FENCED_MEMBER_EPOCH,
        KafkaError._STATE,
        KafkaError._FENCED,
    }
)
"""The group has gone on without the member that asks."""

OUT: Final = frozenset({KafkaError.UNKNOWN_MEMBER_ID, KafkaError.FENCED_MEMBER_EPOCH})
"""Those of them that brokers say of a member that was thrown out."""

NEVER: Final = frozenset(
    {
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.INVALID_GROUP_ID,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.GROUP_MAX_SIZE_REACHED,
        KafkaError.UNSUPPORTED_ASSIGNOR,
        KafkaError._UNSUPPORTED_FEATURE,
    }
)
"""Why a group takes nobody in who asks so. librdkafka goes on asking."""

REFUSED: Final = frozenset({KafkaError._AUTHENTICATION, KafkaError._SSL})
REFUSED_S: Final = 30.0
"""How long a refusal is thought to be the reason of what does not come."""

UNUSED_GROUP: Final = KafkaError.GROUP_AUTHORIZATION_FAILED
"""librdkafka asks about the group that every consumer has to name. Who reads without one need not be allowed to."""

_MEANING: Final[dict[int, type[TaskqError]]] = {
    KafkaError.MSG_SIZE_TOO_LARGE: MessageTooLarge,
    KafkaError.RECORD_LIST_TOO_LARGE: MessageTooLarge,
    KafkaError.OFFSET_OUT_OF_RANGE: OffsetOutOfRange,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: NotAuthorized,
    KafkaError.GROUP_AUTHORIZATION_FAILED: NotAuthorized,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: NotAuthorized,
    KafkaError.SASL_AUTHENTICATION_FAILED: NotAuthorized,
    KafkaError._AUTHENTICATION: NotAuthorized,
    KafkaError._SSL: NotAuthorized,
    KafkaError.INVALID_RECORD: ConfigError,
    KafkaError.INVALID_CONFIG: ConfigError,
    KafkaError.INVALID_PARTITIONS: ConfigError,
    KafkaError.INVALID_REPLICATION_FACTOR: ConfigError,
    KafkaError.INVALID_REQUEST: ConfigError,
    KafkaError.POLICY_VIOLATION: ConfigError,
    KafkaError.INVALID_SESSION_TIMEOUT: ConfigError,
    KafkaError.INVALID_GROUP_ID: ConfigError,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: ConfigError,
    KafkaError.UNSUPPORTED_ASSIGNOR: ConfigError,
    KafkaError.TOPIC_ALREADY_EXISTS: ConfigError,
    KafkaError.TOPIC_EXCEPTION: ConfigError,
    KafkaError._INVALID_ARG: ConfigError,
    KafkaError.KAFKA_STORAGE_ERROR: StorageError,
}

_ADVICE: Final[dict[type[TaskqError], str]] = {
    NotAuthorized: "; check the credentials, and what they allow (ACLs)",
    BrokerUnavailable: "; check that the brokers run and can be reached from here",
}


class Refusals:
    """Why brokers have refused connections of late. librdkafka goes on trying, and who asks hears of time-outs only.

    Who was let in once will be again, most likely: brokers that are starting may know nobody yet. So from then on a
    refusal is no more than brokers that can't be reached.
    """

    def __init__(self) -> None:
        self._last: KafkaError | None = None
        self._heard_at = 0.0
        self._are_over = False

    def let_in(self) -> None:
        """Brokers have answered."""
        self._are_over = True

    def hear(self, error: KafkaError) -> None:
        """For `error_cb`."""
        if error.code() in REFUSED:
            self._last, self._heard_at = error, time.monotonic()

    def since(self, began: float) -> KafkaError | None:
        """The last one that was heard since then (monotonic), if it counts."""
        return self._last if self._heard_at >= began and not self._are_over else None

    def instead_of(self, error: KafkaError) -> KafkaError:
        """The refusal that may be behind `error`, or that itself."""
        if self._last is None or error.code() not in TRANSIENT or time.monotonic() - self._heard_at > REFUSED_S:
            return error
        return self._last

    def pass_over(self, error: KafkaError) -> bool:
        """Whether `error` is a refusal that counts for no more than a broker that is away."""
        return self._are_over and error.code() in REFUSED


def meaning(error: KafkaError | KafkaException, what: str, refusals: Refusals) -> TaskqError:
    """The same error as one of ours. `what` says what was tried, where."""
    cause = error.args[0] if isinstance(error, KafkaException) and error.args else error
    if not isinstance(cause, KafkaError):
        return BrokerError(f"{what}: {cause}")
    cause = refusals.instead_of(cause)
    code = cause.code()
    kind = BrokerUnavailable if refusals.pass_over(cause) else _MEANING.get(code)
    if kind is None and code in UNKNOWN_TOPIC:
        kind = TopicNotFound
    if kind is None:
        kind = BrokerUnavailable if code in TRANSIENT else BrokerError
    return kind(f"{what}: {cause.str()}{_ADVICE.get(kind, '')}")


def as_broker_error(error: TaskqError) -> BrokerError:
    """The same as an error of the broker, as which a consumer tells all that ends it or a partition."""
    return error if isinstance(error, BrokerError) else BrokerError(str(error))


def code_of(error: BaseException) -> int:
    """The number of the error; `KafkaError.UNKNOWN` if it has none."""
    cause = error.args[0] if error.args else None
    return cause.code() if isinstance(cause, KafkaError) else KafkaError.UNKNOWN
