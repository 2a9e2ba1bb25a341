"""What a worker and a child process that runs invocations for it say to each other, and the wire between them.

A pair of connected sockets. A message is its length in four bytes, big-endian, and MessagePack; nothing is pickled.

    worker -> child    Setup, once            child -> worker    Done when it is ready, or Failed
    worker -> child    Call                   child -> worker    Done or Failed

The child ends when there is nothing more to read. Beside the sockets there is a pipe, the lifeline, to which nobody
writes: when its other end is closed, the child and all it has started are killed.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from taskq.app import TaskQ, apps
from taskq.broker.port import Headers
from taskq.config import plain_settings
from taskq.decorators import Task, default_name, module_of
from taskq.errors import TaskNotFound
from taskq.worker.retries import Verdict

SEND_S_MAX: Final = 60
"""A child that does not read what it is told for so long is taken for dead."""

in_child = False
"""Whether this process is such a child."""

_HEAD_BYTES: Final = 4
_READ_BYTES: Final = 65_536


class Reference(Struct, frozen=True, array_like=True):
    """Where another process finds a task: by names, never by what they stand for."""

    app: str
    name: str
    module: str
    """Importing it defines the task."""
    function: str
    """The default name of its function."""

    @classmethod
    def to(cls, task: Task[Any, Any], app: TaskQ) -> Reference:
        return cls(app.name, task.name, module_of(task.fn), default_name(task.fn))

    def find(self) -> tuple[TaskQ, Task[Any, Any]]:
        """The task, and its app. Its module has been imported. Raises TaskNotFound."""
        for app in apps():
            task = app.tasks.get(self.name)
            if app.name == self.app and task is not None and default_name(task.fn) == self.function:
                return app, task
        raise TaskNotFound(
            f"importing {self.module} in a child process does not define the task {self.name!r}: a module must define "
            "the same tasks wherever it is imported"
        )


class Setup(Struct, frozen=True, array_like=True):
    """What a child is to be like: as the worker is."""

    path: list[bytes]
    """Where modules are looked for. As bytes: names of folders need not be text."""
    modules: list[str]
    """Those to import, in this order."""
    tasks: list[Reference]
    settings: dict[str, Any]
    """Those of the app."""
    backend: str
    logs: bool
    """To stderr, as the settings say. Otherwise the app's modules say what becomes of log messages."""

    @classmethod
    def like(
        cls, app: TaskQ, tasks: Sequence[Task[Any, Any]], *, modules: Sequence[str], backend: str, logs: bool
    ) -> Setup:
        """For children of this process. `modules` are what it imported to have `app`; there may be others."""
        return cls(
            path=encode_path(sys.path),
            modules=list(dict.fromkeys([*modules, *(module_of(task.fn) for task in tasks)])),
            tasks=[Reference.to(task, app) for task in tasks],
            settings=plain_settings(app.settings),
            backend=backend,
            logs=logs,
        )


class Call(Struct, frozen=True, array_like=True):
    """An invocation to run, and what `current` tells of it."""

    task: int
    """Which of `Setup.tasks`."""
    group: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    delivery: int
    timeout_s: float | None
    is_suspect: bool
    """It may have killed workers: whatever the system kills for want of memory, this is to be it."""


class Done(Struct, frozen=True, array_like=True, tag=True):
    """It ran to its end."""


class Failed(Struct, frozen=True, array_like=True, tag=True):
    """It did not, and why."""

    verdict: Verdict
    traceback: str


def encode_path(path: Sequence[object]) -> list[bytes]:
    """Of `sys.path`: strings, also those that stand for bytes that are no text. Imports pass over all else."""
    return [entry.encode(errors="surrogatepass") for entry in path if isinstance(entry, str)]


def decode_path(path: Sequence[bytes]) -> list[str]:
    return [entry.decode(errors="surrogatepass") for entry in path]


def is_importable(task: Task[Any, Any]) -> bool:
    """Whether another process can have the task, by importing its module. Not of what a function defines, or a person
    at a prompt."""
    return "<locals>" not in task.fn.__qualname__ and module_of(task.fn) != "__main__"


encode = msgspec.msgpack.Encoder().encode
decode_setup = msgspec.msgpack.Decoder(Setup).decode
decode_call = msgspec.msgpack.Decoder(Call).decode
decode_answer = msgspec.msgpack.Decoder(Done | Failed).decode


class Link:
    """One end. Used by one thread at a time; `close` by any."""

    def __init__(self, end: socket.socket) -> None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S_MAX, 0))
        self._socket = end
        self._received = b""

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Both ends of a new one."""
        ours, theirs = socket.socketpair()
        return cls(ours), cls(theirs)

    @classmethod
    def inherited(cls, fd: int) -> Link:
        """The end that the process was started with."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: bytes) -> None:
        """Raises OSError if the other side is gone, or does not read."""
        self._socket.sendall(len(message).to_bytes(_HEAD_BYTES, "big") + message)

    def read(self) -> bool:
        """Wait for more, and read it. False: no more will come. Raises ConnectionResetError if, besides, the other side
        has not read all that it was sent, where the system tells that."""
        data = self._socket.recv(_READ_BYTES)
        self._received += data
        return bool(data)

    def take(self) -> bytes | None:
        """The next message, if all of it has been read."""
        received = self._received
        end = _HEAD_BYTES + int.from_bytes(received[:_HEAD_BYTES], "big")
        if len(received) < end:  # also as long as not even the length is here
            return None
        self._received = received[end:]
        return received[_HEAD_BYTES:end]

    def close(self) -> None:
        self._socket.close()
