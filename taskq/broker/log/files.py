"""The file system as a port: every touch of a file that the log's safety depends on goes through a `Files`.

`RealFiles` is the operating system. A test hands in another one to make writes fail, tear or vanish; nothing else in
`log/` may call `os` for I/O, and `os.fsync` and `os.fdatasync` are called nowhere but here.

On macOS `fsync` hands data to the drive, which may still hold it in its own cache; there is no `fdatasync`.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import threading
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

TEMPORARY = ".tmp"
"""How the names of files end that are being written. One that nobody writes any more is rubbish."""


class Files(Protocol):
    """What the log asks of a file system. Errors are OSError, as the system says them."""

    def open(self, path: str, *, create: bool = False, write: bool = True) -> int: ...
    def close(self, fd: int, /) -> None: ...
    def pread(self, fd: int, size: int, position: int, /) -> bytes: ...
    def pwrite(self, fd: int, data: bytes, position: int, /) -> int: ...
    def size(self, fd: int) -> int: ...
    def truncate(self, fd: int, size: int, /) -> None: ...
    def sync(self, fd: int, /) -> None:
        """Return once the file's bytes are on stable storage. If it raises, they may be lost: never call it again."""
        ...

    def sync_directory(self, path: str) -> None:
        """Make the creation, renaming and removal of entries of `path` durable."""
        ...

    def listdir(self, path: str) -> list[str]: ...
    def makedirs(self, path: str) -> None: ...
    def mkfifo(self, path: str) -> None: ...
    def rename(self, old: str, new: str, /) -> None:
        """Give a file or an empty directory another name. What has that name is replaced."""
        ...

    def unlink(self, path: str, /) -> None: ...
    def remove_tree(self, path: str) -> None:
        """Remove a directory and all in it. One that is not there is as good."""
        ...

    def size_of(self, path: str) -> int:
        """Bytes of the file of this name. Raises FileNotFoundError."""
        ...

    def stamp(self, path: str) -> tuple[int, int]:
        """What changes when another file gets this name, or this one is written. Raises FileNotFoundError."""
        ...

    def identity(self, fd: int) -> tuple[int, int]:
        """What two descriptors have in common if they are of the same file."""
        ...

    def boot_id(self) -> tuple[int, int]:
        """An id that changes at every boot, as two signed words."""
        ...

    def map_shared(self, fd: int, size: int) -> memoryview:
        """The first `size` bytes of the file as memory that all processes which map it share, as 64-bit words."""
        ...


class RealFiles:
    """The operating system. The hot calls are the `os` functions themselves, without a frame in between.

    What it creates is private to its user (0700, 0600), or with `shared` to its group (0770, 0660).
    """

    close = staticmethod(os.close)
    pread = staticmethod(os.pread)
    pwrite = staticmethod(os.pwrite)
    truncate = staticmethod(os.ftruncate)
    sync = staticmethod(getattr(os, "fdatasync", os.fsync))
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared

    def open(self, path: str, *, create: bool = False, write: bool = True) -> int:
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        if not create:
            return os.open(path, flags)
        fd = os.open(path, flags | os.O_CREAT, 0o660 if self._shared else 0o600)
        if self._shared and os.fstat(fd).st_uid == os.geteuid():
            os.fchmod(fd, 0o660)  # whatever the umask says
        return fd

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(path)

    def makedirs(self, path: str) -> None:
        """Make a directory and those above it that are missing; one that is there is left as it is."""
        parent = os.path.dirname(path)
        if parent and not os.path.isdir(parent):
            self.makedirs(parent)
        try:
            os.mkdir(path, 0o770 if self._shared else 0o700)
        except FileExistsError:
            return
        if self._shared:
            os.chmod(path, 0o770)

    def remove_tree(self, path: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(path)

    def size_of(self, path: str) -> int:
        return os.stat(path).st_size

    @staticmethod
    def stamp(path: str) -> tuple[int, int]:
        found = os.stat(path)
        return found.st_ino, found.st_mtime_ns

    @staticmethod
    def identity(fd: int) -> tuple[int, int]:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino

    def boot_id(self) -> tuple[int, int]:
        return _boot_id()

    def mkfifo(self, path: str) -> None:
        os.mkfifo(path, 0o660 if self._shared else 0o600)
        if self._shared:
            os.chmod(path, 0o660)

    def map_shared(self, fd: int, size: int) -> memoryview:
        return memoryview(mmap.mmap(fd, size)).cast("q")


@cache
def _boot_id() -> tuple[int, int]:
    """Raises where the system has none: a head could not be trusted.

    Linux: /proc/sys/kernel/random/boot_id. macOS: the boot's session uuid, which `sysctl` prints.
    """
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        import subprocess

        command = ["sysctl", "-n", "kern.bootsessionuuid"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    raw = uuid.UUID(text.strip()).bytes
    return int.from_bytes(raw[:8], "big", signed=True), int.from_bytes(raw[8:], "big", signed=True)


# -- small files that are written whole

UNGUARDED = nullcontext()
"""For `write_whole`: nothing can speak against it."""


def read_whole(files: Files, path: str) -> bytes:
    """All bytes of a file. Raises FileNotFoundError."""
    fd = files.open(path, write=False)
    try:
        return files.pread(fd, files.size(fd), 0)
    finally:
        files.close(fd)


def check_written(count: int, data: bytes, path: str | None = None) -> None:
    """Raise OSError if `count`, what writing `data` returned, is not all of it: a disk that is full may take a part."""
    if count != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def is_there(files: Files, path: str) -> bool:
    """Whether anything has this name."""
    try:
        files.size_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_or_empty(files: Files, path: str) -> bytes:
    """All bytes of a file; none if there is no such file."""
    try:
        return read_whole(files, path)
    except FileNotFoundError:
        return b""


def write_whole(files: Files, path: str, data: bytes, guard: AbstractContextManager[object] = UNGUARDED) -> None:
    """Put `data` in the place of the file at `path`.

    Whoever reads it, or finds it after a power cut, has all of the old or all of the new. The name is durable once its
    directory is synced, which is left to the caller. `guard` is held while the file gets its name, and raises what
    speaks against it: the file there stays then. What takes long is done before.
    """
    temporary = _temporary(path)
    fd = files.open(temporary, create=True)
    try:
        files.truncate(fd, 0)
        check_written(files.pwrite(fd, data, 0), data, temporary)
        files.sync(fd)
    except OSError:
        files.close(fd)
        with suppress(OSError):
            files.unlink(temporary)
        raise
    files.close(fd)
    try:
        with guard:
            files.rename(temporary, path)
    except Exception:
        with suppress(OSError):
            files.unlink(temporary)
        raise


def _temporary(path: str) -> str:
    """A name that only this thread uses, and that says what the file may be removed for if we die."""
    return f"{path}.{os.getpid()}-{threading.get_ident()}{TEMPORARY}"


def remove(files: Files, path: str, guard: AbstractContextManager[object] = UNGUARDED) -> None:
    """Remove the file at `path`, if there is one. `guard` is held while it loses its name, as in `write_whole`.

    To remove a large one takes a quarter of a second for each gigabyte, and that is done after it.
    """
    gone = _temporary(path)
    try:
        with guard:
            files.rename(path, gone)
    except FileNotFoundError:
        return
    with suppress(FileNotFoundError):  # its directory was removed
        files.unlink(gone)


def encode_json(document: Mapping[str, Any] | list[Any]) -> bytes:
    """As every JSON file in a data directory is written: one line."""
    return json.dumps(document).encode() + b"\n"
