"""A file system that fails at one place: which places there are, which were passed, and the call that is to fail."""

from __future__ import annotations

import ast
import errno
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from taskq.broker.log.files import RealFiles

_BROKER = Path(__file__).parents[2] / "taskq" / "broker"

SHORT = -1
"""Not an error number: the call writes half of what it was given, and says so, as a disk does that is getting full."""

ERRORS: dict[str, tuple[int, ...]] = {
    "open": (errno.EMFILE, errno.EIO, errno.ENOSPC),
    "close": (),
    "pread": (errno.EIO,),
    "pwrite": (errno.ENOSPC, errno.EIO, SHORT),
    "size": (errno.EIO,),
    "truncate": (errno.EIO,),
    "sync": (errno.EIO, errno.ENOSPC),
    "sync_directory": (errno.EIO, errno.EMFILE),
    "listdir": (errno.EIO, errno.EMFILE),
    "makedirs": (errno.ENOSPC, errno.EIO),
    "mkfifo": (errno.ENOSPC,),
    "rename": (errno.EIO, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "remove_tree": (errno.EIO,),
    "size_of": (errno.EIO,),
    "boot_id": (errno.EIO,),
    "map_shared": (errno.ENOMEM,),
}
"""Method of Files -> how it may fail. EINTR is not among them: Python makes the call again by itself (PEP 475). `close`
does not fail: what must be on the disk was synced before, and a local file system has nothing left to do then."""


class Site(NamedTuple):
    """A call of `Files` in taskq/broker."""

    file: str
    function: str
    method: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.method}"


@cache
def sites() -> dict[tuple[str, str, int], Site]:
    """Every call of a file system's method in taskq/broker, as the source has them: by file, method and line."""
    found: dict[tuple[str, str, int], Site] = {}
    for path in sorted(_BROKER.rglob("*.py")):
        name = path.relative_to(_BROKER).as_posix()
        for function, call in _calls(ast.parse(path.read_text(encoding="utf-8")), ""):
            site = Site(name, function, _method(call), call.lineno)
            for line in range(call.lineno, (call.end_lineno or call.lineno) + 1):
                found.setdefault((name, site.method, line), site)
    return found


def _calls(node: ast.AST, function: str) -> list[tuple[str, ast.Call]]:
    if isinstance(node, ast.FunctionDef):
        function = node.name
    found = [(function, node)] if isinstance(node, ast.Call) and _method(node) else []
    for child in ast.iter_child_nodes(node):
        found += _calls(child, function)
    return found


def _method(call: ast.Call) -> str:
    """The method of `Files` that is called, if it is one. Partition keeps `pwrite` itself, to save a look-up."""
    name = ast.unparse(call.func)
    owner, _, method = name.rpartition(".")
    if owner.split(".")[-1].lstrip("_") == "files" and method in ERRORS:
        return method
    return "pwrite" if name == "self._pwrite" else ""


class Fault(NamedTuple):
    """The `nth` call at `site` fails with `code`."""

    site: Site
    nth: int
    code: int

    def __str__(self) -> str:
        name = "a short write" if self.code == SHORT else errno.errorcode[self.code]
        return f"{name} at call {self.nth} of {self.site}"


class FaultyFiles(RealFiles):
    """The real file system, but for `faults`. Counts the calls of each site. Syncs are not waited for."""

    def __init__(self, *, shared: bool = False) -> None:
        super().__init__(shared=shared)
        self.passed: Counter[Site] = Counter()
        self.faults: Sequence[Fault] = ()
        self.failed = 0
        self.boot = (1, 1)
        real: Any = RealFiles(shared=shared)
        for method in ERRORS:
            setattr(self, method, self._wrapped(method, getattr(real, method)))

    def _wrapped(self, method: str, real: Callable[..., Any]) -> Callable[..., Any]:
        known = sites()
        instead: dict[str, Callable[..., Any]] = {
            "sync": lambda fd: None,
            "sync_directory": lambda path: None,
            "boot_id": lambda: self.boot,
        }
        does = instead.get(method, real)

        def call(*arguments: Any, **options: Any) -> Any:
            frame = sys._getframe(1)
            name = frame.f_code.co_filename.rpartition("/taskq/broker/")[2]
            site = known.get((name, method, frame.f_lineno))
            assert site is not None, f"{frame.f_code.co_filename}:{frame.f_lineno} calls {method} and is not known to"
            self.passed[site] += 1
            for fault in self.faults:
                if fault.site == site and fault.nth == self.passed[site]:
                    self.failed += 1
                    return _fail(method, real, arguments, fault.code)
            return does(*arguments, **options)

        return call


def _fail(method: str, real: Callable[..., Any], arguments: tuple[Any, ...], code: int) -> object:
    """A failed call may have done half of its work."""
    if method == "pwrite":
        fd, data, position = arguments
        written = real(fd, data[: len(data) // 2], position)
        if code == SHORT:
            return written
    where = arguments[0] if arguments and isinstance(arguments[0], str) else None
    raise OSError(code, os.strerror(code), where)
