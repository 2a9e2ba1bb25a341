"""Two questions to a Kafka node in its own protocol, so that waiting for it needs no client library."""

from __future__ import annotations

import socket
import struct

ANSWER_S = 2.0
_DESCRIBE_QUORUM = 55
_DESCRIBE_CLUSTER = 60
_NO_TAGS = b"\x00"


class NoAnswer(Exception):
    """The node does not answer, or with an error."""


class _Answer:
    """The fields of a response in their order, in the flexible encoding."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, layout: str) -> int:
        """An integer, `layout` as `struct` knows it."""
        (value,) = struct.unpack_from(f">{layout}", self._data, self._at)
        self._at += struct.calcsize(layout)
        return int(value)

    def length(self) -> int:
        """Of an array or a string: an unsigned varint, one more than the length."""
        value = shift = 0
        while True:
            byte = self.number("B")
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return max(0, value - 1)

    def skip_string(self) -> None:
        self._skip(self.length())

    def skip_tags(self) -> None:
        for _ in range(self.number("B")):  # none of ours has more than 127
            self.number("B")
            self._skip(self.length() + 1)

    def _skip(self, size: int) -> None:
        self._at += size


def _ask(port: int, api: int, body: bytes) -> _Answer:
    request = struct.pack(">hhih", api, 0, 1, -1) + _NO_TAGS + body
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            with connection.makefile("rb") as stream:
                (size,) = struct.unpack(">i", stream.read(4))
                answer = _Answer(stream.read(size))
    except (OSError, struct.error) as error:
        raise NoAnswer(str(error)) from error
    answer.number("i")  # the correlation id
    answer.skip_tags()
    return answer


def nodes(port: int) -> set[int]:
    """The nodes that are registered and alive, as the node at `port` knows."""
    answer = _ask(port, _DESCRIBE_CLUSTER, b"\x00" + _NO_TAGS)
    answer.number("i")  # throttled
    error = answer.number("h")
    if error:
        raise NoAnswer(f"DescribeCluster: error {error}")
    answer.skip_string()  # the error's message
    answer.skip_string()  # the cluster's id
    answer.number("i")  # any node, since KRaft
    found = set()
    for _ in range(answer.length()):
        found.add(answer.number("i"))
        answer.skip_string()  # host
        answer.number("i")  # port
        answer.skip_string()  # rack
        answer.skip_tags()
    return found


def leader(port: int) -> int:
    """The node whose controller is active, asked through the node at `port`: the controller itself answers."""
    topic = b"__cluster_metadata"
    partitions = b"\x02" + struct.pack(">i", 0) + _NO_TAGS
    body = b"\x02" + bytes([len(topic) + 1]) + topic + partitions + _NO_TAGS + _NO_TAGS
    answer = _ask(port, _DESCRIBE_QUORUM, body)
    error = answer.number("h")
    if error or not answer.length():
        raise NoAnswer(f"DescribeQuorum: error {error}")
    answer.skip_string()
    answer.length()
    answer.number("i")  # partition 0
    error = answer.number("h")
    if error:
        raise NoAnswer(f"DescribeQuorum: error {error}")
    return answer.number("i")
