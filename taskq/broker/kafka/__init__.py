"""The port over Apache Kafka, or whatever speaks its protocol, through librdkafka.

broker     what `connect` opens; what its parts share
conf       what librdkafka is told
errors     its errors as ours
topics     topics and their settings; who creates them
producer   delivery reports turned into acknowledgements
member     a member of a group: who holds what, and commits
fetcher    reads what the member holds
consumer   both of them as one consumer
reader     looks without a group
admin
stats      librdkafka's statistics as metrics
"""

from __future__ import annotations

from taskq.broker.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker"]
