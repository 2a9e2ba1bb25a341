"""Apache Kafka's command line tools, by the names they have in its `bin`."""

from __future__ import annotations

import subprocess

from tests.kafka.jars import Jars

_TOOLS_PACKAGE = "org.apache.kafka.tools"
TOOLS = {
    "kafka-acls": f"{_TOOLS_PACKAGE}.AclCommand",
    "kafka-broker-api-versions": f"{_TOOLS_PACKAGE}.BrokerApiVersionsCommand",
    "kafka-cluster": f"{_TOOLS_PACKAGE}.ClusterTool",
    "kafka-configs": "kafka.admin.ConfigCommand",
    "kafka-console-consumer": f"{_TOOLS_PACKAGE}.consumer.ConsoleConsumer",
    "kafka-console-producer": f"{_TOOLS_PACKAGE}.ConsoleProducer",
    "kafka-console-share-consumer": f"{_TOOLS_PACKAGE}.consumer.ConsoleShareConsumer",
    "kafka-consumer-groups": f"{_TOOLS_PACKAGE}.consumer.group.ConsumerGroupCommand",
    "kafka-consumer-perf-test": f"{_TOOLS_PACKAGE}.ConsumerPerformance",
    "kafka-delete-records": f"{_TOOLS_PACKAGE}.DeleteRecordsCommand",
    "kafka-dump-log": f"{_TOOLS_PACKAGE}.DumpLogSegments",
    "kafka-features": f"{_TOOLS_PACKAGE}.FeatureCommand",
    "kafka-get-offsets": f"{_TOOLS_PACKAGE}.GetOffsetShell",
    "kafka-groups": f"{_TOOLS_PACKAGE}.GroupsCommand",
    "kafka-leader-election": f"{_TOOLS_PACKAGE}.LeaderElectionCommand",
    "kafka-log-dirs": f"{_TOOLS_PACKAGE}.LogDirsCommand",
    "kafka-metadata-quorum": f"{_TOOLS_PACKAGE}.MetadataQuorumCommand",
    "kafka-producer-perf-test": f"{_TOOLS_PACKAGE}.ProducerPerformance",
    "kafka-reassign-partitions": f"{_TOOLS_PACKAGE}.reassign.ReassignPartitionsCommand",
    "kafka-replica-verification": f"{_TOOLS_PACKAGE}.ReplicaVerificationTool",
    "kafka-share-groups": f"{_TOOLS_PACKAGE}.consumer.group.ShareGroupCommand",
    "kafka-storage": "kafka.tools.StorageTool",
    "kafka-topics": f"{_TOOLS_PACKAGE}.TopicCommand",
    "kafka-transactions": f"{_TOOLS_PACKAGE}.TransactionsCommand",
}
OFFLINE = {"kafka-dump-log", "kafka-storage"}
"""They look at files, and don't know `--bootstrap-server`."""

QUICK_START = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""For programs that end before the better compiler has paid."""


class ToolFailed(AssertionError):
    """One of Kafka's tools ended with another code than 0."""


def command(jars: Jars, name: str, *arguments: str, bootstrap: str | None = None) -> list[str]:
    """The command line of a tool, which is told the servers unless it is told already or needs none."""
    if bootstrap is None or name in OFFLINE or "--bootstrap-server" in arguments:
        servers = []
    else:
        servers = ["--bootstrap-server", bootstrap]
    # Those with commands of their own take it before the command; but one takes it only after.
    line = [*arguments, *servers] if name == "kafka-cluster" else [*servers, *arguments]
    return jars.command(TOOLS[name], *line, options=QUICK_START)


def run(jars: Jars, name: str, *arguments: str, bootstrap: str | None = None, within_s: float = 50) -> str:
    """What the tool prints, standard error included."""
    ran = subprocess.run(
        command(jars, name, *arguments, bootstrap=bootstrap),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=within_s,
    )
    if ran.returncode:
        raise ToolFailed(f"{name} {' '.join(arguments)} ended with {ran.returncode}:\n{ran.stdout}")
    return ran.stdout
