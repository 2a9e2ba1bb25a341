"""Every file name in a data directory. Nothing else builds or takes apart a path in it.

taskq.json                               format version of the directory
lock                                     flock held while topics are created, altered and deleted
cleaner.lock                             flock held while old segments are removed
producer-ids                             the next producer id
topics/<topic>/topic.json                its id, number of partitions, settings
topics/<topic>/deleted                   what topic.json is renamed to when the topic is deleted
topics/<topic>/<partition>/head          shared memory and the append lock: see head.py
topics/<topic>/<partition>/<base offset, 20 digits>.log
topics/<topic>/<partition>/<base offset, 20 digits>.index
topics/<topic>/<partition>/<base offset, 20 digits>.timeindex
topics/<topic>/<partition>/checkpoint    up to where the log is known to be sound and on stable storage: checkpoint.py
topics/<topic>/<partition>/<offset, 20 digits>.snapshot   what idempotent producers had sent below that offset
topics/<topic>/<partition>/compacted     how far compaction has come: compaction.py
topics/<topic>/<partition>/merging       segments that are being replaced by one: replacement.py
topics/<topic>/<partition>/recovery.json what the last recoveries found
topics/<topic>/<partition>/<base offset, 20 digits>.<position>.aside   what recovery cut that may be of use
waiters/groups/<group>/<member>          FIFO of a consumer, to be told of comings and goings in the group
waiters/topics/<topic>/<slot>            the same FIFO, to be told of records: see broker/wakeups.py
groups/<group>/members/<member>          flock held as long as the member lives; its topics, as JSON
groups/<group>/topics/<topic>/<partition>  the partition's lease (a flock), owner and committed offset
"""

from __future__ import annotations

import re

FORMAT_VERSION = 2

UNFINISHED = "~"
_LOG = ".log"
_INDEX = ".index"
_TIMEINDEX = ".timeindex"
_ASIDE = ".aside"
_SNAPSHOT = ".snapshot"
_DIGITS = 20
_TEMPORARY = re.compile(r".+\.\d+-\d+\.tmp", re.ASCII)  # as files.write_whole names them: process and thread


def format_file(root: str) -> str:
    return f"{root}/taskq.json"


def lock_file(root: str) -> str:
    return f"{root}/lock"


def cleaner_lock(root: str) -> str:
    return f"{root}/cleaner.lock"


def producer_ids(root: str) -> str:
    return f"{root}/producer-ids"


def topics(root: str) -> str:
    return f"{root}/topics"


def topic(root: str, name: str) -> str:
    return f"{root}/topics/{name}"


def unfinished_topic(root: str, name: str) -> str:
    """A topic that is being created or removed. No topic can be called that."""
    return f"{root}/topics/{name}{UNFINISHED}"


def topic_file(topic_directory: str) -> str:
    return f"{topic_directory}/topic.json"


def deleted_file(topic_directory: str) -> str:
    """What says, where there is no topic file, that the topic has been deleted and all in it may go."""
    return f"{topic_directory}/deleted"


def partition(topic_directory: str, number: int) -> str:
    return f"{topic_directory}/{number}"


def head(partition_directory: str) -> str:
    return f"{partition_directory}/head"


def log(partition_directory: str, base_offset: int) -> str:
    return f"{partition_directory}/{base_offset:0{_DIGITS}}{_LOG}"


def index(partition_directory: str, base_offset: int) -> str:
    return f"{partition_directory}/{base_offset:0{_DIGITS}}{_INDEX}"


def timeindex(partition_directory: str, base_offset: int) -> str:
    return f"{partition_directory}/{base_offset:0{_DIGITS}}{_TIMEINDEX}"


def checkpoint(partition_directory: str) -> str:
    return f"{partition_directory}/checkpoint"


def snapshot(partition_directory: str, offset: int) -> str:
    return f"{partition_directory}/{offset:0{_DIGITS}}{_SNAPSHOT}"


def snapshot_offset(file_name: str) -> int | None:
    """The offset that a snapshot's file name says, or None if it is not a snapshot's."""
    return _number(file_name, _SNAPSHOT)


def compacted(partition_directory: str) -> str:
    return f"{partition_directory}/compacted"


def merging(partition_directory: str) -> str:
    return f"{partition_directory}/merging"


def recovery_report(partition_directory: str) -> str:
    return f"{partition_directory}/recovery.json"


def aside(partition_directory: str, base_offset: int, position: int) -> str:
    """Where recovery puts what it takes out of segment `base_offset` from byte `position` on."""
    return f"{partition_directory}/{base_offset:0{_DIGITS}}.{position}{_ASIDE}"


def is_temporary(file_name: str) -> bool:
    """Whether this is a small file that is being written, or was by a process that died."""
    return _TEMPORARY.fullmatch(file_name) is not None


def log_base_offset(file_name: str) -> int | None:
    """The base offset that a segment's file name says, or None if it is not a segment's."""
    return _number(file_name, _LOG)


def index_base_offset(file_name: str) -> int | None:
    """The base offset that an index's file name says, or None if it is neither an offset nor a time index."""
    found = _number(file_name, _INDEX)
    return _number(file_name, _TIMEINDEX) if found is None else found


def is_aside(file_name: str) -> bool:
    """Whether this is a file of what recovery has cut."""
    base, _, rest = file_name.partition(".")
    return (
        rest.endswith(_ASIDE) and rest.removesuffix(_ASIDE).isdecimal() and _number(f"{base}{_LOG}", _LOG) is not None
    )


_PARTITION_FILES = frozenset({"head", "checkpoint", "compacted", "merging", "recovery.json"})
_ROOT_FILES = frozenset({"taskq.json", "lock", "cleaner.lock", "producer-ids", "topics", "groups", "waiters"})


def is_partition_file(file_name: str) -> bool:
    """Whether a file of this name in a partition's directory is one of ours."""
    if file_name in _PARTITION_FILES or is_aside(file_name):
        return True
    return any(_number(file_name, suffix) is not None for suffix in (_LOG, _INDEX, _TIMEINDEX, _SNAPSHOT))


def is_root_file(file_name: str) -> bool:
    """Whether a file of this name in a data directory is one of ours."""
    return file_name in _ROOT_FILES


def _number(file_name: str, suffix: str) -> int | None:
    stem = file_name.removesuffix(suffix)
    return int(stem) if len(stem) == _DIGITS and stem.isdecimal() and stem != file_name else None


def topic_waiters(root: str, name: str) -> str:
    return f"{root}/waiters/topics/{name}"


def group_waiters(root: str, name: str) -> str:
    return f"{root}/waiters/groups/{name}"


def groups(root: str) -> str:
    return f"{root}/groups"


def members(root: str, group: str) -> str:
    return f"{root}/groups/{group}/members"


def group_topics(root: str, group: str) -> str:
    return f"{root}/groups/{group}/topics"


def group_topic(root: str, group: str, topic_name: str) -> str:
    return f"{root}/groups/{group}/topics/{topic_name}"


def lease(root: str, group: str, topic_name: str, number: int) -> str:
    return f"{root}/groups/{group}/topics/{topic_name}/{number}"
