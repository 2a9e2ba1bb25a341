"""Which app a command is about."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from taskq.app import TaskQ, default_app
from taskq.cli.discovery import find_app
from taskq.config import load_settings
from taskq.errors import ConfigError

Find = Callable[..., TaskQ]


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """Write `source` as module `shop_tasks` into the working directory and look for the app `name` says."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def find(source: str, name: str | None = "shop_tasks", **overrides: object) -> TaskQ:
        (tmp_path / "shop_tasks.py").write_text(source)
        return find_app(load_settings(app=name, environ={}), **overrides)

    yield find
    sys.modules.pop("shop_tasks", None)


ONE = "from taskq import TaskQ\napp = TaskQ('one')\n"
TWO = ONE + "other = TaskQ('two')\n"


def test_the_only_app_of_a_module_needs_no_name(find: Find):
    assert find(ONE).name == "one"


def test_an_app_may_be_known_by_two_names(find: Find):
    assert find(ONE + "celery = app\n").name == "one"


def test_one_of_several_apps_is_chosen_by_name(find: Find):
    assert find(TWO, "shop_tasks:other").name == "two"


def test_an_app_may_be_an_attribute_of_something(find: Find):
    assert find(ONE + "class Deep:\n    app = app\n", "shop_tasks:Deep.app").name == "one"


def test_a_module_without_an_app_means_the_default_app(find: Find):
    assert find("from taskq import task\n") is default_app


def test_several_apps_without_a_choice_are_an_error_that_lists_them(find: Find):
    with pytest.raises(ConfigError, match="choose -A shop_tasks:app or -A shop_tasks:other"):
        find(TWO)


def test_a_name_that_is_not_there_names_near_ones(find: Find):
    with pytest.raises(ConfigError, match=r"'shop_tasks' has no 'ap'; did you mean app\?"):
        find(ONE, "shop_tasks:ap")


def test_something_else_than_an_app_is_an_error(find: Find):
    with pytest.raises(ConfigError, match="shop_tasks:x is of type int, not a TaskQ"):
        find("x = 1\n", "shop_tasks:x")


def test_no_app_at_all_names_the_three_ways(find: Find):
    with pytest.raises(ConfigError, match=r"-A module.*TASKQ_APP.*\[tool\.taskq\] app"):
        find(ONE, None)


def test_a_module_that_is_not_there_says_where_it_was_looked_for(find: Find, tmp_path: Path):
    with pytest.raises(ConfigError, match=f"there is no module 'shop_taks' in {tmp_path}"):
        find(ONE, "shop_taks")
    with pytest.raises(ConfigError, match=r"there is no module 'nowhere' in"):
        find(ONE, "nowhere.tasks")


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("import not_installed\n", r'line 1, in <module>(?s:.)*ModuleNotFoundError: No module named .not_installed.'),
        ("def f():\n    return 1 / 0\nf()\n", r"line 3, in <module>(?s:.)*line 2, in f(?s:.)*ZeroDivisionError"),
        ("def f(:\n", r"shop_tasks\.py(?s:.)*SyntaxError"),
        ("raise SystemExit(3)\n", r"ends the process \(SystemExit: 3\)"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_shows_why(find: Find, source: str, why: str):
    with pytest.raises(ConfigError, match=why) as caught:
        find(source)
    assert "importlib" not in str(caught.value)
    assert "discovery.py" not in str(caught.value)


@pytest.mark.parametrize("name", ["shop_tasks.py", "./shop_tasks.py"])
def test_a_file_instead_of_a_module_is_an_error_that_says_how_it_is_called(find: Find, name: str):
    with pytest.raises(ConfigError, match="name a module, not a file; perhaps -A shop_tasks"):
        find(ONE, name)


def test_what_the_command_line_says_is_stronger_than_what_the_app_says(find: Find, tmp_path: Path):
    app = find("from taskq import TaskQ\napp = TaskQ('one', broker='memory:')\n", broker="elsewhere", concurrency=None)
    assert app.settings.broker == (tmp_path / "elsewhere").as_uri()
    assert app.settings.concurrency == 16
