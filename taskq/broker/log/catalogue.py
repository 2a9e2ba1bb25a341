"""The topics of a data directory on disk: creating, altering and deleting them while other processes use them.

All of it happens under one lock, the directory's. Each step leaves a state that whoever comes next can finish:

- created: everything is made under a name that no topic can have, and renamed.
- altered: topic.json is replaced, and then every head is marked, so that whoever appends next reads it.
- deleted: topic.json is renamed first, to `deleted`, from when on the topic does not exist for anybody who looks. Then
  all heads are marked, under their append locks, so that nobody can append any more to a log that is still open
  somewhere: what is acknowledged after that is in the topic that is made anew. Then the progress of groups goes, then
  the directory gets a name that no topic can have, and heads are marked and progress removed once more, since there
  may be some that was made meanwhile. Each of these is durable before the next. A deletion that was cut short is
  finished by whoever creates the topic anew, or by the cleaner. It needs no space on the disk.

Nothing else is ever removed: a directory with neither topic.json nor `deleted` may be a topic that lost a file, or
somebody else's. It is left alone, and no topic can be created in its place.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress

from attrs import evolve, field, frozen

from taskq.broker.limits import check_partitions
from taskq.broker.log import names
from taskq.broker.log.failures import storage_error
from taskq.broker.log.files import Files, encode_json, is_there, read_whole, write_whole
from taskq.broker.log.head import SETTINGS, Head, Notice
from taskq.broker.log.locks import close_lockable, lock, open_lockable
from taskq.broker.log.offsets import group_names
from taskq.broker.log.opening import change_head
from taskq.errors import BrokerUnavailable, ConfigError, TopicNotFound
from taskq.topics import TopicSettings, parse_settings, settings_for

_Change = Callable[[Head], None]

_log = logging.getLogger("taskq.log")


@frozen
class Topic:
    """What topic.json says."""

    name: str
    id: str
    """Another one for each topic that is created, even of the same name."""
    partitions: int
    given: Mapping[str, int | str]
    """The settings that were said."""
    stamp: tuple[int, int] = field(eq=False)
    """Of the file. A topic whose file has another one has been altered, or is another topic."""

    @property
    def settings(self) -> TopicSettings:
        return settings_for(self.name, self.given)


class Catalogue:
    """See the module docstring. Has no state: what it tells is as it is now. Thread-safe."""

    def __init__(self, root: str, files: Files) -> None:
        self._root = root
        self._files = files

    def names(self) -> list[str]:
        """Of all topics there are, sorted."""
        found = [name for name in self._files.listdir(names.topics(self._root)) if not name.endswith(names.UNFINISHED)]
        return sorted(name for name in found if self.stamp(name) is not None)

    def stamp(self, name: str) -> tuple[int, int] | None:
        """`Topic.stamp` as it is now; None if there is no such topic."""
        try:
            return self._files.stamp(names.topic_file(names.topic(self._root, name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read(self, name: str) -> Topic | None:
        """The topic, or None if there is none."""
        path = names.topic_file(names.topic(self._root, name))
        while (stamp := self.stamp(name)) is not None:
            try:
                document = read_json(self._files, path)
            except FileNotFoundError:
                return None
            if stamp == self.stamp(name):
                count, given = document.get("partitions"), document.get("settings", {})
                if not isinstance(count, int) or not isinstance(given, dict):
                    raise BrokerUnavailable(f"{path} does not say how many partitions there are")
                return Topic(name, str(document.get("id", "")), count, given, stamp)
        return None

    # -- changing

    def create(self, name: str, partitions: int, given: Mapping[str, int | str], *, exist_ok: bool = False) -> None:
        """Create a topic, whole or not at all. Raises ConfigError if the number is bad, or it exists."""
        check_partitions(name, partitions)
        with self._locked(f"topic {name!r} can't be created"):
            found = self.read(name)
            if found is None:
                self._create(Topic(name, uuid.uuid4().hex, partitions, given, (0, 0)))
            elif not exist_ok:
                raise ConfigError(f"topic {name!r} exists already, with {found.partitions} partitions")
            else:  # its creator may have died just before this
                self._files.sync_directory(names.topics(self._root))

    def _create(self, topic: Topic) -> None:
        final, unfinished = names.topic(self._root, topic.name), names.unfinished_topic(self._root, topic.name)
        if self._is_half_deleted(topic.name):
            self._remove(topic.name)  # whoever deleted it died halfway
        elif is_there(self._files, final):
            raise BrokerUnavailable(
                f"topic {topic.name!r} can't be created: {final} is there, without a topic.json. If it is a topic's "
                "that lost this file, restore the file from a backup; else move it away"
            )
        self._discard(topic.name)  # and this is of one who died creating it, or deleting
        try:
            for number in range(topic.partitions):
                self._files.makedirs(names.partition(unfinished, number))
            self._write(unfinished, topic)
        except OSError:
            with suppress(OSError):
                self._files.remove_tree(unfinished)
            raise
        self._files.rename(unfinished, final)
        self._files.sync_directory(names.topics(self._root))
        _log.debug("created topic %s with %d partitions", topic.name, topic.partitions)

    def alter(self, name: str, partitions: int | None, settings: Mapping[str, int | str]) -> None:
        """Change what is named. Raises TopicNotFound, or ConfigError."""
        with self._locked(f"topic {name!r} can't be altered"):
            topic = self._get(name)
            count = topic.partitions if partitions is None else partitions
            check_partitions(name, count)
            if count < topic.partitions:
                raise ConfigError(
                    f"topic {name!r} has {topic.partitions} partitions; with {count}, records would be lost"
                )
            given = {**topic.given, **parse_settings(settings)}
            directory = names.topic(self._root, name)
            for number in range(topic.partitions, count):
                self._files.makedirs(names.partition(directory, number))
            self._write(directory, evolve(topic, partitions=count, given=given))
            self._change_heads(directory, _mark_altered)
        _log.info("altered topic %s: %d partitions, %s", name, count, given or "default settings")

    def delete(self, name: str) -> None:
        """Remove a topic. Raises TopicNotFound."""
        with self._locked(f"topic {name!r} can't be deleted"):
            self._get(name)
            directory = names.topic(self._root, name)
            self._files.rename(names.topic_file(directory), names.deleted_file(directory))
            self._remove(name)
        _log.info("deleted topic %s", name)

    def finish(self) -> None:
        """Finish deletions that were cut short, and remove what creations left behind that were."""
        try:
            left = self._left()
        except OSError as error:
            raise storage_error("what is left of deleted topics can't be removed", self._root, error) from error
        if left:
            with self._locked("what is left of deleted topics can't be removed"):
                for name in sorted(self._left()):
                    if self._is_half_deleted(name):
                        self._remove(name)
                    self._discard(name)

    def _left(self) -> set[str]:
        """The topics of which there is something that is to be removed, if nobody is about to create or delete them."""
        found = self._files.listdir(names.topics(self._root))
        unfinished = {name.removesuffix(names.UNFINISHED) for name in found if name.endswith(names.UNFINISHED)}
        return unfinished | {name for name in found if self._is_half_deleted(name)}

    def _is_half_deleted(self, name: str) -> bool:
        marker = names.deleted_file(names.topic(self._root, name))
        return self.stamp(name) is None and is_there(self._files, marker)

    def _remove(self, name: str) -> None:
        """Remove a topic that `_is_half_deleted`."""
        final, unfinished = names.topic(self._root, name), names.unfinished_topic(self._root, name)
        self._files.sync_directory(final)  # or a power cut would bring it back, without what is removed of it here
        self._change_heads(final, _mark_deleted)
        self._forget_progress(name)
        self._discard(name)
        self._files.rename(final, unfinished)
        self._discard(name)

    def _discard(self, name: str) -> None:
        """Remove what has the name of a topic that is being created or removed, if it is a directory."""
        unfinished = names.unfinished_topic(self._root, name)
        try:
            self._files.listdir(unfinished)
        except (FileNotFoundError, NotADirectoryError):
            return
        self._change_heads(unfinished, _mark_deleted)
        if self.stamp(name) is None:  # a member that had not heard of the deletion may have taken a lease again
            self._forget_progress(name)
        # Its name must last, or a power cut could bring the old one back, without the file that says that it may go.
        self._files.sync_directory(names.topics(self._root))
        self._files.remove_tree(unfinished)

    def _forget_progress(self, name: str) -> None:
        """Durably, and so before a topic of this name is made anew: its records are not those that were finished."""
        for group in group_names(self._files, self._root):
            self._files.remove_tree(names.group_topic(self._root, group, name))
            with suppress(FileNotFoundError):  # it has never held a lease
                # Though nothing was there now: who removed it may have died before this.
                self._files.sync_directory(names.group_topics(self._root, group))

    def _change_heads(self, directory: str, change: _Change) -> None:
        """Call `change` for every partition that anybody can have open."""
        try:
            found = self._files.listdir(directory)
        except FileNotFoundError:
            return
        for number in found:
            if number.isdecimal():
                change_head(self._files, f"{directory}/{number}", change)

    def _get(self, name: str) -> Topic:
        topic = self.read(name)
        if topic is None:
            raise not_found(self._root, name, self.names())
        return topic

    def _write(self, directory: str, topic: Topic) -> None:
        document = {"id": topic.id, "partitions": topic.partitions, "settings": dict(topic.given)}
        write_json(self._files, names.topic_file(directory), document)

    @contextmanager
    def _locked(self, failing: str) -> Generator[None]:
        """Nobody else changes topics inside this. What the system refuses is raised as `failing`, with the reason."""
        try:
            lock_fd = open_lockable(self._files, names.lock_file(self._root), create=True)
            try:
                lock(lock_fd)
                yield
            finally:
                close_lockable(self._files, lock_fd)
        except OSError as error:
            raise storage_error(failing, self._root, error) from error


def _mark_altered(head: Head) -> None:
    head.words[SETTINGS] += 1
    head.republish(head.state())


def _mark_deleted(head: Head) -> None:
    head.notify(Notice.DELETED)


def not_found(root: str, name: str, known: list[str]) -> TopicNotFound:
    """The error that there is no such topic, with those there are."""
    return TopicNotFound(f"there is no topic {name!r} in {root}; there are: {', '.join(known)}")


def read_json(files: Files, path: str) -> dict[str, object]:
    """A JSON object of a data directory. Raises FileNotFoundError, or BrokerUnavailable if it is none."""
    text = read_whole(files, path)
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise BrokerUnavailable(f"{path} does not hold what taskq writes there; restore it from a backup")
    return document


def write_json(files: Files, path: str, document: Mapping[str, object]) -> None:
    """Replace the file at `path`, durably."""
    write_whole(files, path, encode_json(document))
    files.sync_directory(path.rpartition("/")[0])
