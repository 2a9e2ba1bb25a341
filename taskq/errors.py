"""Every error taskq raises.

A class's docstring is its meaning and what to do about it; the message given at the place of the error says what
happened, where, and to what.

    TaskqError
    ├── ConfigError            an option, URL, name or file that makes no sense
    ├── BrokerError            the broker could not do what was asked
    │   ├── BrokerUnavailable  it can't be reached or opened
    │   ├── TopicNotFound
    │   ├── MessageTooLarge
    │   ├── OffsetOutOfRange   a group's next records have been removed
    │   ├── StorageFull
    │   ├── StorageError       an fsync or write failed: the partition refuses writes until reopened
    │   ├── CorruptLog         bytes on disk that are not what was written
    │   ├── DataDirInUse       the other kind of owner has the directory
    │   └── NotAuthorized
    ├── InvocationError        one invocation can't be published or run as it stands
    │   ├── TaskNotFound
    │   ├── ArgumentsError
    │   ├── SerializationError
    │   ├── SignatureError
    │   ├── TimeLimitExceeded  it ran for longer than its task may
    │   └── ProcessDied        the process it ran in ended, and not by itself
    └── ResultError            what a handle answers when there is no result to return
        ├── ResultTimeout
        ├── TaskFailed
        └── TaskCancelled
"""

from __future__ import annotations


class TaskqError(Exception):
    """The root of all errors that taskq raises on purpose."""


class ConfigError(TaskqError):
    """An option, URL, name or configuration file makes no sense. Correct it; nothing was published or changed."""


class BrokerError(TaskqError):
    """The broker could not do what was asked."""


class BrokerUnavailable(BrokerError):
    """The broker can't be reached or opened. Check its URL, permissions, and that it is running; then retry."""


class TopicNotFound(BrokerError):
    """There is no topic or partition of this name. `taskq topics list` shows those there are."""


class MessageTooLarge(BrokerError):
    """A message is over the limit (1 MiB). Store the payload elsewhere and pass a reference to it."""


class OffsetOutOfRange(BrokerError):
    """The next records of a group in a partition were removed before it read them, and it asks to be told
    (`offset_reset = "error"`). With `offset_reset = "earliest"` (`TASKQ_OFFSET_RESET`) it goes on with what is left.
    """


class StorageFull(BrokerError):
    """The disk is full or over quota. What is stored stays readable; publishing works again when space returns."""


class StorageError(BrokerError):
    """A write or fsync failed. The partition refuses writes until reopened; the fsync is never retried."""


class CorruptLog(BrokerError):
    """Bytes on disk are not what was written. `taskq log verify` says what is affected.

    Attributes: `file` (path), `position` (byte in the file), `reason`.
    """

    def __init__(self, file: str, position: int, reason: str) -> None:
        super().__init__(f"{file}: damaged at byte {position}: {reason}")
        self.file = file
        self.position = position
        self.reason = reason

    def __reduce__(self) -> tuple[type[CorruptLog], tuple[str, int, str]]:
        return type(self), (self.file, self.position, self.reason)


class DataDirInUse(BrokerError):
    """Another kind of owner (a `taskq broker`, or embedded processes) holds the data directory."""


class NotAuthorized(BrokerError):
    """The broker knows who asks and says no."""


class InvocationError(TaskqError):
    """One invocation can't be published, or can't be run, as it stands."""


class TaskNotFound(InvocationError):
    """No task of this name is registered. Import the module that defines it, or check the name."""


class ArgumentsError(InvocationError):
    """Arguments don't fit the task's signature or its annotations."""


class SerializationError(InvocationError):
    """A value can't be encoded, or a record is not an invocation."""


class SignatureError(InvocationError):
    """A message that must be signed is unsigned, or signed with a key that is not ours. It was not unpickled."""


class TimeLimitExceeded(InvocationError):
    """An invocation ran for longer than its task's `timeout`. Give it more, or less to do."""


class ProcessDied(InvocationError):
    """The process that an invocation ran in ended in the middle of it: a crash, a kill, `os._exit`, no memory."""


class ResultError(TaskqError):
    """What a handle raises when there is no result to return."""


class ResultTimeout(ResultError):
    """The result did not come in time. The invocation goes on; ask again later."""


class TaskFailed(ResultError):
    """The task failed for good. Attributes: `type`, `message`, `traceback`, all as the worker saw them."""

    def __init__(self, type: str, message: str, traceback: str = "") -> None:  # noqa: A002 - the field's own name
        super().__init__(f"{type}: {message}")
        self.type = type
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[type[TaskFailed], tuple[str, str, str]]:
        return type(self), (self.type, self.message, self.traceback)


class TaskCancelled(ResultError):
    """The invocation was cancelled before it finished."""


REFUSALS = (ConfigError, InvocationError, MessageTooLarge, TopicNotFound, NotAuthorized)
"""What a broker that is well says of a message or its topic, and would say again: of no use to wait, or to end for."""
