"""`--reload`: tells when a Python file has changed that a worker has imported, or that is under the working directory.

The process that watches is the supervisor, which imports no app: code that can't be imported ends a worker, and never
what waits for it to be mended. Which files outside the working directory matter, only a worker can know; it says so on
its link (`imported_sources`), and the watch is begun anew when they are others.

watchfiles does the watching: inotify, FSEvents, or polling where WATCHFILES_FORCE_POLLING says so, as network file
systems need. It is told of everything below the folders that are watched, the log of an embedded broker included, so
what matters is picked here and not by its filter: it would not come back for as long as nothing does.
"""

from __future__ import annotations

import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Self

from attrs import define, field

from taskq.errors import ConfigError, TaskqError

DEBOUNCE_MS = 400
"""Changes this close to each other are one, as long as files change all the time."""

SETTLED_MS = 100
"""And it is told at once when nothing has changed for so long."""

LOOK_AGAIN_MS = 250
"""How often the watch looks up when nothing happens, and in how long it is known to have begun."""

ASK_EVERY = 4
"""At every how many of those it asks which files matter."""

NAMED_MAX = 3
_NEVER = frozenset({"__pycache__", "node_modules", "site-packages"})

_log = logging.getLogger("taskq.worker")


def imported_sources(error: BaseException | None = None) -> tuple[str, ...]:
    """The files that this process has imported and that a person may be editing: nothing that was installed.

    Those, too, that could not be imported, for `error` or what it was raised for.
    """
    installed = {
        Path(path).resolve() for name, path in sysconfig.get_paths().items() if name.endswith(("lib", "purelib"))
    }
    found = set()
    for file in [*_files_of_modules(), *_files_of(error)]:
        if isinstance(file, str) and file.endswith(".py"):
            path = Path(file).resolve()
            if "site-packages" not in path.parts and not any(path.is_relative_to(folder) for folder in installed):
                found.add(str(path))
    return tuple(sorted(found))


def _files_of_modules() -> Iterator[object]:
    for module in list(sys.modules.values()):
        with suppress(Exception):  # a module may do anything when it is looked at
            yield getattr(module, "__file__", None)


def _files_of(error: BaseException | None) -> Iterator[object]:
    """Where it was raised, and what could not be compiled."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, SyntaxError):
            yield error.filename
        for frame, _ in walk_tb(error.__traceback__):
            yield frame.f_code.co_filename
        error = error.__cause__ or error.__context__


def matters(path: str, here: Path, sources: Collection[str]) -> bool:
    """Whether a change of `path` is one of the code: it was imported, or is Python under the folder `here`."""
    if path in sources:
        return True
    file = Path(path)
    if file.suffix != ".py" or not file.is_relative_to(here):
        return False
    return not any(part in _NEVER or part.startswith(".") for part in file.relative_to(here).parts)


def folders(here: Path, sources: Iterable[str]) -> set[Path]:
    """What to watch: `here`, and the folders of sources elsewhere."""
    return {here} | {file.parent for file in map(Path, sources) if not file.is_relative_to(here)}


def describe(paths: Iterable[str], here: Path) -> str:
    """Say what changed, in a line."""
    names = sorted(str(path.relative_to(here)) if path.is_relative_to(here) else str(path) for path in map(Path, paths))
    more = len(names) - NAMED_MAX
    return f"{', '.join(names[:NAMED_MAX])}{f' and {more} more' if more > 0 else ''} changed"


def check_installed() -> None:
    """Raises ConfigError unless there is what watches."""
    if find_spec("watchfiles") is None:
        raise ConfigError("--reload needs watchfiles: pip install 'taskq[reload]'")


@define(eq=False)
class Watcher:
    """A thread that calls `changed` with what has, for as long as this is entered. Raises TaskqError if it can't."""

    here: Path
    sources: Callable[[], set[str]]
    """The files that workers have imported, or could not; none while there are none."""
    changed: Callable[[str], object]

    _known: set[str] = field(init=False, factory=set)
    """The last that workers said."""
    _told_at: float = field(init=False, factory=time.time)
    """When something was said to have changed the last time: workers have been started since."""
    _stop: threading.Event = field(init=False, factory=threading.Event)
    _has_begun: threading.Event = field(init=False, factory=threading.Event)
    _error: Exception | None = field(init=False, default=None)
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> Self:
        logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it tells of every change of every file
        self.here = self.here.resolve()
        self._thread = threading.Thread(target=self._run, name="taskq-reload", daemon=True)
        self._thread.start()
        self._has_begun.wait()
        if self._error is not None:
            raise TaskqError(f"can't watch {self.here}: {self._error}")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._watch(folders(self.here, self._known))
        except Exception as error:  # no watches left, or a folder is gone
            self._error = error
            if self._has_begun.is_set():
                _log.exception("files are not watched any more; start again to have them be")
        finally:
            self._has_begun.set()

    def _missed(self) -> set[str]:
        """Sources that changed before it was known that they are to be watched."""
        missed = set()
        for path in self._known:
            with suppress(OSError):  # it is gone
                if Path(path).stat().st_mtime > self._told_at:
                    missed.add(path)
        return missed

    def _watch(self, watched: set[Path]) -> None:
        """Watch until there is something else to watch, too, or it is told to stop."""
        from watchfiles import watch

        there = [folder for folder in watched if folder == self.here or folder.is_dir()]
        changes = watch(
            *there,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=SETTLED_MS,
            stop_event=self._stop,
            rust_timeout=LOOK_AGAIN_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        for turn, found in enumerate(changes):
            paths = {path for _, path in found if matters(path, self.here, self._known)}
            if turn == 0:
                self._has_begun.set()
                paths |= self._missed()
                _log.info("watching %s", ", ".join(map(str, sorted(there))))
            if paths:
                self._told_at = time.time()
                self.changed(describe(paths, self.here))
            if turn % ASK_EVERY == 0:
                self._known = self.sources() or self._known
                if folders(self.here, self._known) != watched:
                    return
