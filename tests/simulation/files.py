"""The files of one simulated process, on a simulated disk. Everything it does may be where it, or the power, ends."""

from __future__ import annotations

import errno
import os
from collections import Counter
from random import Random

from taskq.broker.log import locks
from taskq.broker.log.files import RealFiles
from tests.simulation.disk import Directory, Disk, File, Truncate, Write, apply, damage


class PowerCut(BaseException):
    """The power is gone, for all processes at once."""


class Killed(BaseException):
    """This process is gone: whatever it held is free, whatever it knew is lost."""


class Fate:
    """What is to happen next, to whom: shared by all processes of one disk.

    Counts the calls that change something on disk; `cut_at` is the one in which the power goes.
    """

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.fates: Counter[str] = Counter()
        """What became of each change that was not durable."""
        self.calls = 0
        self.cut_at: int | None = None
        self.failed: set[str] = set()
        """Files whose fsync failed."""


class SimFiles:
    """A `taskq.broker.log.files.Files` that writes through to the real file system and tells the disk's journal.

    `kill_in`, `fail_sync_in`, `fill_in`: after so many further calls (of its kind) this process is killed, an fsync
    fails, the disk is full.
    """

    pread = staticmethod(os.pread)
    listdir = staticmethod(os.listdir)

    def __init__(self, disk: Disk, fate: Fate) -> None:
        self._real = RealFiles()
        self._disk = disk
        self._fate = fate
        self._open: dict[int, tuple[str, File | None]] = {}
        self.faults = 0
        """How many calls have failed because they were told to."""
        self.kill_in: int | None = None
        self.fail_sync_in: int | None = None
        self.fill_in: int | None = None

    # -- ends

    def _begin(self) -> BaseException | None:
        """A call that changes something: raises what ends it before it does, or returns what is to end it after."""
        fate = self._fate
        fate.calls += 1
        ending: BaseException | None = None
        if fate.cut_at is not None and fate.calls >= fate.cut_at:
            ending = PowerCut()
        elif self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in <= 0:
                ending = Killed()
        if ending is not None and fate.rng.random() < 0.5:
            raise ending
        return ending

    @staticmethod
    def _end(ending: BaseException | None) -> None:
        if ending is not None:
            raise ending

    def die(self) -> None:
        """The process is gone: the system closes its files, which frees its locks."""
        for fd in list(self._open):
            locks.forget(fd)
            self.close(fd)

    # -- files

    def open(self, path: str, *, create: bool = False, write: bool = True) -> int:
        directory, name, node = self._disk.find(path)
        ending = self._begin() if create and node is None else None
        fd = self._real.open(path, create=create, write=write)
        if node is None:
            node = File()
            directory.change({name: node})
        self._open[fd] = path, node if isinstance(node, File) else None
        self._end(ending)
        return fd

    def close(self, fd: int, /) -> None:
        del self._open[fd]
        os.close(fd)

    def pwrite(self, fd: int, data: bytes, position: int, /) -> int:
        ending = self._begin()
        data = bytes(data)
        if self.fill_in is not None:
            self.fill_in -= 1
            if self.fill_in <= 0:
                self.fill_in = None
                self.faults += 1
                data = data[: self._fate.rng.randrange(len(data))]
                if not data:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if isinstance(ending, Killed):
            data = data[: self._fate.rng.choice((len(data), self._fate.rng.randrange(len(data) + 1)))]
        written = os.pwrite(fd, data, position)
        if (file := self._open[fd][1]) is not None and data:
            file.pending.append(Write(position, data))
        self._end(ending)
        return written

    def truncate(self, fd: int, size: int, /) -> None:
        ending = self._begin()
        os.ftruncate(fd, size)
        if (file := self._open[fd][1]) is not None:
            file.pending.append(Truncate(size))
        self._end(ending)

    def sync(self, fd: int, /) -> None:
        ending = self._begin()
        path, file = self._open[fd]
        if file is not None:
            if self._is_sync_to_fail():
                self._fate.failed.add(path)
                self._lose(fd, file)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            file.sync()
        self._end(ending)

    def _is_sync_to_fail(self) -> bool:
        if self.fail_sync_in is None:
            return False
        self.fail_sync_in -= 1
        if self.fail_sync_in > 0:
            return False
        self.fail_sync_in = None
        self.faults += 1
        return True

    def _lose(self, fd: int, file: File) -> None:
        """An fsync failed. The system takes all pages for clean now: what could not be written stays in memory until it
        is needed for something else, or is dropped at once; no later sync will write it."""
        rng = self._fate.rng
        for change in file.pending:
            if isinstance(change, Truncate):
                apply(file.durable, change)
            else:
                damage(rng, file.durable, change, self._fate.fates)
        file.pending.clear()
        if rng.random() < 0.5:
            size = self.size(fd)
            data = bytes(file.durable[:size]).ljust(size, b"\0")
            os.pwrite(fd, data, 0)

    # -- directories

    def sync_directory(self, path: str) -> None:
        ending = self._begin()
        directory = self._disk.directory(path)
        if self._is_sync_to_fail():  # the journal keeps it and tries again: or else it would take no more changes
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        directory.sync()
        self._end(ending)

    def makedirs(self, path: str) -> None:
        missing: list[str] = []
        while path != self._disk.base:
            try:
                if self._disk.find(path)[2] is not None:
                    break
            except FileNotFoundError:
                pass
            missing.append(path)
            path = os.path.dirname(path)
        for one in reversed(missing):
            ending = self._begin()
            os.mkdir(one, 0o700)
            above, name, _ = self._disk.find(one)
            above.change({name: Directory()})
            self._end(ending)

    def rename(self, old: str, new: str, /) -> None:
        ending = self._begin()
        os.rename(old, new)
        directory, old_name, node = self._disk.find(old)
        assert directory is self._disk.find(new)[0], "no rename of the log leads from one directory to another"
        directory.change({old_name: None, new.rpartition("/")[2]: node})
        self._end(ending)

    def unlink(self, path: str, /) -> None:
        ending = self._begin()
        os.unlink(path)
        directory, name, _ = self._disk.find(path)
        directory.change({name: None})
        self._end(ending)

    def remove_tree(self, path: str) -> None:
        try:
            above, name, node = self._disk.find(path)
        except FileNotFoundError:
            return
        if not isinstance(node, Directory):
            return
        for below, inner in list(node.live.items()):
            if isinstance(inner, Directory):
                self.remove_tree(f"{path}/{below}")
            else:
                self.unlink(f"{path}/{below}")
        ending = self._begin()
        os.rmdir(path)
        above.change({name: None})
        self._end(ending)

    def size(self, fd: int) -> int:
        return self._real.size(fd)

    def size_of(self, path: str) -> int:
        return self._real.size_of(path)

    def stamp(self, path: str) -> tuple[int, int]:
        return self._real.stamp(path)

    def identity(self, fd: int) -> tuple[int, int]:
        return self._real.identity(fd)

    def mkfifo(self, path: str) -> None:
        raise NotImplementedError("nobody here waits for records")

    def map_shared(self, fd: int, size: int) -> memoryview:
        return self._real.map_shared(fd, size)

    def boot_id(self) -> tuple[int, int]:
        return self._disk.boot, -self._disk.boot
