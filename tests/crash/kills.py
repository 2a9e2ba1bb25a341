"""Epochs of kills: many processes on one data directory, killed at random moments, then everything is checked."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from random import Random

from attrs import frozen

from taskq.broker.port import TopicPartition
from tests.crash.checks import Found, Known, check
from tests.crash.family import Child, Failed, Family, family
from tests.crash.roles import consume, read, write
from tests.crash.workload import GROUPS, doom

KILLS_PER_EPOCH = 40
_PAUSE_S_MAX = 0.03
_CHECK_S = 120.0


@frozen
class Cast:
    """Who plays: how many of each at a time."""

    writers: int = 4
    members: int = 3
    readers: int = 1


class Epoch:
    """One data directory and its processes."""

    def __init__(self, seed: str, root: str, processes: Family, cast: Cast) -> None:
        self._seed = seed
        self._root = root
        self._family = processes
        self._cast = cast
        self._rng = Random(seed)
        self._numbers = iter(range(1_000_000))
        self._all: list[tuple[str, int, str, Child]] = []
        self.kills = 0

    def run(self, kills: int) -> Found:
        """Kill so many processes one by one, then all that are left, and check."""
        for kind, count in (
            ("writer", self._cast.writers),
            ("member", self._cast.members),
            ("reader", self._cast.readers),
        ):
            for _ in range(count):
                self._start(kind)
        while self.kills < kills:
            self._family.listen(self._rng.random() * _PAUSE_S_MAX)
            while self._family.died:
                self._family.died.pop()
                self.kills += 1
                self._start("writer")
            self._start(self._kill(self._rng.choice(self._family.living)))
        while self._family.living:
            self._kill(self._rng.choice(self._family.living))
        checker = self._family.start("the check", partial(check, root=self._root, known=self._known()))
        self._family.wait(checker, _CHECK_S)
        return Found(*map(int, checker.lines[-1][1:]))

    def _start(self, kind: str) -> None:
        number = next(self._numbers)
        group = self._rng.choice(GROUPS) if kind == "member" else ""
        roles: dict[str, Callable[..., None]] = {
            "writer": partial(write, root=self._root, seed=self._seed, writer=number),
            "reader": partial(read, root=self._root, seed=self._seed, number=number),
            "member": partial(consume, root=self._root, seed=self._seed, number=number, group=group),
        }
        is_doomed = kind == "writer" and doom(self._seed, number) is not None
        child = self._family.start(f"{kind} {number}", roles[kind], is_doomed=is_doomed)
        self._all.append((kind, number, group, child))

    def _kill(self, child: Child) -> str:
        self._family.kill(child)
        self.kills += 1
        return child.name.partition(" ")[0]

    def _known(self) -> Known:
        writers = {number: child.lines for kind, number, _, child in self._all if kind == "writer"}
        readers = [child.lines for kind, _, _, child in self._all if kind == "reader"]
        return Known(self._seed, writers, readers, self._check_members())

    def _check_members(self) -> dict[tuple[str, TopicPartition], int]:
        """One holder at a time, who begins at what was committed or later. Returns what is committed at the end."""
        committed: dict[tuple[str, TopicPartition], list[tuple[int, int]]] = {}
        holder: dict[tuple[str, TopicPartition], str] = {}
        for at, who, what, group, tp, begun, offset in sorted(self._events()):
            key = group, tp
            if what == "assigned":
                if holder.get(key, who) != who:
                    raise Failed(f"group {group}, {tp}: {who} has it, {holder[key]} has it too")
                holder[key] = who
                before = [reached for when, reached in committed.get(key, ()) if when < begun]
                if offset < max(before, default=0):
                    raise Failed(f"group {group}, {tp}: {max(before)} had been committed, {who} begins at {offset}")
            elif what == "commit":
                committed.setdefault(key, []).append((at, offset))
            elif holder.get(key) == who:
                del holder[key]
        return {key: max(offset for _, offset in all_of_it) for key, all_of_it in committed.items()}

    def _events(self) -> Iterator[tuple[int, str, str, str, TopicPartition, int, int]]:
        for kind, _, group, child in self._all:
            if kind == "member":
                held = set()
                for line in child.lines:
                    if line[0] != "alive":
                        at, begun, topic, number, offset = line[1:]
                        tp = TopicPartition(topic, int(number))
                        held.add(tp)
                        yield int(at), child.name, line[0], group, tp, int(begun), int(offset)
                for tp in held:
                    yield child.killed_at, child.name, "release", group, tp, 0, 0


def run(kills: int, seed: int, cast: Cast, say: Callable[[str], None]) -> tuple[int, Found]:
    """So many kills, in epochs of a data directory each. Raises Failed; then the directory is kept, and named."""
    total, done, epoch = Found(), 0, 0
    while done < kills:
        epoch += 1
        root = tempfile.mkdtemp(prefix="taskq-crash-")
        try:
            with family() as processes:
                here = Epoch(f"{seed}/{epoch}", root, processes, cast)
                total = total.plus(here.run(min(KILLS_PER_EPOCH, kills - done)))
        except BaseException:
            say(f"epoch {epoch} of seed {seed} failed; its data directory is {root}")
            raise
        done += here.kills
        shutil.rmtree(root)
        say(f"{done} kills: {total}")
    return done, total
