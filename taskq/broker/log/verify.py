"""Verifying a log: a data directory, a topic's or a partition's directory, or one segment's file. Reads only.

This is what `taskq log verify` does, and what the tests do with every log they have used. It finds what is lost or
can't be read, and says where that is and what it takes with it; what heals by itself is a warning. Whoever appends,
rolls, retains or compacts meanwhile is not disturbed, and is not taken for damage (inspection.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from attrs import asdict, define, field

from taskq.broker.log import names, offsets
from taskq.broker.log.files import TEMPORARY, Files, is_there, read_whole
from taskq.broker.log.inspection import DAMAGE, INFORMATION, WARNING, Counts, Finding, inspect, inspect_segment
from taskq.broker.log.view import read_head
from taskq.errors import ConfigError

Progress = Callable[[int], object]
"""Called with numbers of bytes that have been looked through."""


@define
class Verified:
    """What verifying found, and how much it looked through."""

    findings: list[Finding] = field(factory=list)
    counts: Counts = field(factory=Counts)

    @property
    def is_damaged(self) -> bool:
        return any(one.severity == DAMAGE for one in self.findings)

    def say(self, severity: str, path: str, what: str) -> None:
        self.findings.append(Finding(severity, path, what))

    def add(self, findings: list[Finding], counts: Counts) -> None:
        """Add what was found in a part."""
        self.findings += findings
        self.counts = Counts(**{key: value + getattr(counts, key) for key, value in asdict(self.counts).items()})


def verify(files: Files, path: str, progress: Progress = lambda size: None) -> Verified:
    """Look through everything in `path`. Raises ConfigError if there is nothing of a log."""
    path = os.path.normpath(path)
    found = Verified()
    try:
        entries = set(files.listdir(path))
    except NotADirectoryError:
        _segment_file(files, path, found, progress)
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}; name a data directory, a topic's or a partition's, or a .log file"
        ) from None
    else:
        if entries & {"taskq.json", "topics"}:
            _data_directory(files, path, found, progress)
        elif "topic.json" in entries:
            _topic(files, path, found, progress)
        elif any(names.is_partition_file(name) for name in entries):
            _partition(files, path, found, progress)
        elif entries and all(name.isdecimal() for name in entries):
            _topic(files, path, found, progress)
        else:
            raise ConfigError(
                f"{path} holds nothing of a log; name a data directory, a topic's, a partition's or a file"
            )
    return found


def log_files(files: Files, path: str) -> list[str]:
    """All segments' files in `path` and below, or `path` itself if it is one."""
    try:
        entries = sorted(files.listdir(path))
    except NotADirectoryError:
        return [path] if names.log_base_offset(os.path.basename(path)) is not None else []
    except FileNotFoundError:
        return []
    return [one for name in entries for one in log_files(files, f"{path}/{name}")]


def _segment_file(files: Files, path: str, found: Verified, progress: Progress) -> None:
    if names.log_base_offset(os.path.basename(path)) is None:
        raise ConfigError(f"{path} is no segment of a log: those are named by 20 digits and .log")
    look = inspect_segment(files, path, progress)
    found.add(look.findings, look.counts)


def _partition(files: Files, path: str, found: Verified, progress: Progress) -> int:
    """The offset after the last sound record."""
    look = inspect(files, path, progress)
    found.add(look.findings, look.counts)
    return look.end or 0


def _topic(files: Files, path: str, found: Verified, progress: Progress) -> list[int]:
    """The ends of its partitions."""
    found.counts.topics += 1
    document = _json(files, names.topic_file(path), found)
    count = document.get("partitions") if document else None
    entries = set(files.listdir(path)) - {"topic.json", "deleted"}
    if document is not None and (type(count) is not int or count < 1):
        found.say(DAMAGE, names.topic_file(path), "it does not say how many partitions there are: no topic to open")
        count = None
    if type(count) is not int:
        count = 1 + max((int(name) for name in entries if name.isdecimal()), default=-1)
    ends: list[int] = []
    for number in range(count):
        directory = names.partition(path, number)
        entries.discard(str(number))
        try:
            ends.append(_partition(files, directory, found, progress))
        except FileNotFoundError:
            found.say(DAMAGE, directory, "the partition's directory is missing, and all its records")
            ends.append(0)
    _foreign(path, entries, found)
    return ends


def _foreign(path: str, entries: set[str], found: Verified) -> None:
    for name in sorted(entries):
        if name.endswith(TEMPORARY):
            found.say(
                INFORMATION, f"{path}/{name}", "being written, or left over from a process that died while it did"
            )
        else:
            found.say(DAMAGE, f"{path}/{name}", "a foreign file: taskq has not written it; move it away")


def _json(files: Files, path: str, found: Verified) -> dict[str, Any] | None:
    """What a file that holds an object of JSON says; None if it can't be read, which is said."""
    try:
        document: Any = json.loads(read_whole(files, path))
    except FileNotFoundError:
        found.say(DAMAGE, path, "the file is missing; restore it from a backup")
    except ValueError as error:
        found.say(DAMAGE, path, f"it is not the JSON that taskq writes there ({error}); restore it from a backup")
    else:
        if isinstance(document, dict):
            return document
        found.say(DAMAGE, path, "it is not the JSON object that taskq writes there; restore it from a backup")
    return None


# -- a data directory


def _data_directory(files: Files, root: str, found: Verified, progress: Progress) -> None:
    document = _json(files, names.format_file(root), found)
    if document is not None and document.get("format") != names.FORMAT_VERSION:
        what = f"it says format {document.get('format')!r}; this version of taskq reads {names.FORMAT_VERSION}"
        found.say(DAMAGE, names.format_file(root), what)
    _foreign(root, {name for name in files.listdir(root) if not names.is_root_file(name)}, found)
    ends: dict[str, list[int]] = {}
    for name in _listed(files, names.topics(root)):
        path = names.topic(root, name)
        if name.endswith("~"):
            found.say(INFORMATION, path, "a topic that is being created or deleted, or whose creator died halfway")
            continue
        one = Verified()
        try:
            ends[name] = _topic(files, path, one, progress)
        except (FileNotFoundError, NotADirectoryError):
            ends.pop(name, None)
        if is_there(files, names.deleted_file(path)) and not is_there(files, names.topic_file(path)):
            ends.pop(name, None)
            found.say(INFORMATION, path, "a topic that is being deleted, or whose deleter died halfway")
        elif is_there(files, path):  # else it has been deleted meanwhile, and what seemed to be missing is not
            found.add(one.findings, one.counts)
    for group in _listed(files, names.groups(root)):
        _group(files, root, group, ends, found)


def _listed(files: Files, path: str) -> list[str]:
    try:
        return sorted(files.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _group(files: Files, root: str, group: str, ends: dict[str, list[int]], found: Verified) -> None:
    for topic in _listed(files, names.group_topics(root, group)):
        for text in _listed(files, f"{names.group_topics(root, group)}/{topic}"):
            if not text.isdecimal():
                _foreign(f"{names.group_topics(root, group)}/{topic}", {text}, found)
                continue
            number = int(text)
            known = ends.get(topic, [])
            end = known[number] if number < len(known) else None
            said = _lease(files, root, (group, topic, number), end)
            if said is not None:  # a commit under way looks torn: look again
                said = _lease(files, root, (group, topic, number), end)
            if said is not None:
                found.findings.append(said)


def _lease(files: Files, root: str, of: tuple[str, str, int], end: int | None) -> Finding | None:
    """What is wrong with a group's progress in a partition."""
    group, topic, number = of
    path = names.lease(root, group, topic, number)
    try:
        raw = read_whole(files, path)
    except FileNotFoundError:
        return None
    written = [at for at in offsets.SLOT_POSITIONS if raw[at : at + offsets.SLOT_BYTES].strip(b"\0")]
    torn = [at for at in written if not _is_sound_commit(raw[at : at + offsets.SLOT_BYTES])]
    _, committed, _ = offsets.read(raw)
    if committed is None:
        if not written:
            return None
        what = f"what group {group} has committed can't be read: it begins again at the start of {topic}/{number}"
        return Finding(DAMAGE, path, what, offsets.OWNER_BYTES, len(raw) - offsets.OWNER_BYTES)
    _, state = read_head(files, names.partition(names.topic(root, topic), number))
    end = end if state is None else state.next_offset
    if end is not None and committed.offset > end:
        what = f"group {group} has committed offset {committed.offset} of {topic}/{number}, which ends at {end}"
        return Finding(DAMAGE, path, what)
    if torn:
        what = f"a commit of group {group} is torn or damaged: of those that are not, offset {committed.offset} holds"
        return Finding(WARNING, path, what, torn[0], offsets.SLOT_BYTES)
    return None


def _is_sound_commit(slot: bytes) -> bool:
    return offsets.read(bytes(offsets.OWNER_BYTES) + slot)[1] is not None
