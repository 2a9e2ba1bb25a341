"""What a reload looks at. That it works as a whole is in tests/cli/test_reload.py."""

from __future__ import annotations

import importlib
import os
import queue
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from taskq.errors import ConfigError, TaskqError
from taskq.worker import reload
from taskq.worker.reload import Watcher, check_installed, describe, folders, imported_sources, matters

HERE = Path("/work/shop")
SOURCES = {"/work/shop/shop.py", "/work/lib/prices.py"}


@pytest.mark.parametrize(
    ("path", "is_source"),
    [
        ("/work/shop/shop.py", True),
        ("/work/shop/new/module.py", True),
        ("/work/lib/prices.py", True),
        ("/work/lib/other.py", False),
        ("/work/shop/.taskq/topics/a.py", False),
        ("/work/shop/.venv/lib/python3.13/site-packages/x.py", False),
        ("/work/shop/venv/lib/python3.13/site-packages/x.py", False),
        ("/work/shop/__pycache__/x.py", False),
        ("/work/shop/notes.md", False),
        ("/work/shop/shop.pyc", False),
    ],
)
def test_what_matters(path: str, is_source: bool):
    assert matters(path, HERE, SOURCES) is is_source


def test_folders_are_the_working_directory_and_those_of_sources_elsewhere():
    assert folders(HERE, SOURCES) == {HERE, Path("/work/lib")}


def test_a_line_says_what_changed():
    assert describe({"/work/shop/a.py"}, HERE) == "a.py changed"
    assert describe({"/work/shop/a.py", "/work/lib/b.py"}, HERE) == "/work/lib/b.py, a.py changed"
    assert describe([f"/work/shop/{name}.py" for name in "abcde"], HERE) == "a.py, b.py, c.py and 2 more changed"


def test_sources_are_what_is_imported_and_not_installed():
    sources = imported_sources()
    assert str(Path(__file__).resolve()) in sources
    assert str(Path(reload.__file__).resolve()) in sources
    for installed in (pytest, sys.modules["logging"], sys.modules["asyncio"]):
        assert str(Path(str(installed.__file__)).resolve()) not in sources


class Odd(ModuleType):
    def __getattr__(self, name: str) -> str:
        raise ImportError(f"install the extra to have {name}")


def test_a_module_that_can_not_be_looked_at_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "odd", Odd("odd"))
    del sys.modules["odd"].__dict__["__loader__"]
    assert str(Path(__file__).resolve()) in imported_sources()


def test_sources_are_what_could_not_be_imported_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "says_what_is_wrong.py").write_text("def broken(:\n")
    (tmp_path / "imports_it.py").write_text(
        "try:\n import says_what_is_wrong\nexcept SyntaxError:\n raise ValueError('not today')\n"
    )
    with pytest.raises(ValueError, match="not today") as raised:
        importlib.import_module("imports_it")
    found = set(imported_sources(raised.value)) - set(imported_sources())
    assert {Path(file).name for file in found} == {"says_what_is_wrong.py", "imports_it.py"}


def test_without_watchfiles_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    assert find_spec("watchfiles")
    check_installed()
    monkeypatch.setattr(reload, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'taskq\[reload\]'"):
        check_installed()


def test_what_changed_before_it_was_watched_is_told(tmp_path: Path):
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    for file, mtime in ((old, 1_000_000), (new, 4_000_000_000)):
        file.touch()
        os.utime(file, (mtime, mtime))
    here = tmp_path / "here"
    here.mkdir()
    told: queue.Queue[str] = queue.Queue()
    sources = {str(old), str(new), str(tmp_path / "gone.py")}
    with Watcher(here, lambda: sources, told.put):
        assert told.get(timeout=30) == f"{new} changed"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(TaskqError, match="can't watch"), Watcher(tmp_path / "nothing", set, print):
        pass


def test_a_folder_that_cannot_be_watched_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def watch(*_: object, **__: object) -> None:
        raise OSError("OS file watch limit reached")

    monkeypatch.setattr("watchfiles.watch", watch)
    with pytest.raises(TaskqError, match=r"can't watch .*: OS file watch limit reached"), Watcher(tmp_path, set, print):
        pass
