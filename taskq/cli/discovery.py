"""Finding the app that a command is about: `-A module[:app]`, TASKQ_APP, or `[tool.taskq] app`."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from taskq.app import TaskQ, default_app
from taskq.config import Settings, did_you_mean
from taskq.errors import ConfigError


def find_app(settings: Settings, **overrides: Any) -> TaskQ:
    """Import the app that `settings.app` names, and give it the `overrides` of the command line.

    Raises ConfigError if none is named, if its module can't be imported (and why), or if it is not an app.
    """
    if settings.app is None:
        raise ConfigError(
            "which app? Name the module that defines the tasks, as `-A module` or `-A module:app`, as TASKQ_APP, "
            "or in pyproject.toml as `[tool.taskq] app`"
        )
    module_name, _, attribute = settings.app.partition(":")
    module = _import(module_name)
    app = _attribute(module, attribute) if attribute else _only_app(module)
    given = {name: value for name, value in overrides.items() if value is not None}
    if given:
        app.configure(**given)
    return app


def _import(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if name.endswith(".py") or "/" in name:
        module = ".".join(Path(name).with_suffix("").parts)
        raise ConfigError(f"app {name!r}: name a module, not a file; perhaps -A {module}")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"app {name!r}: there is no module {error.name!r} in {folder} or installed") from None
        raise ConfigError(_why(name, error)) from None
    except Exception as error:
        raise ConfigError(_why(name, error)) from None
    except SystemExit as error:
        raise ConfigError(f"app {name!r}: importing it ends the process (SystemExit: {error})") from None


def _why(name: str, error: Exception) -> str:
    """What happened in the user's own code: the traceback without the import machinery's part."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not _is_machinery(frame.filename)]
    lines = traceback.format_list(theirs) + traceback.format_exception_only(error)
    return f"app {name!r} can't be imported:\n{''.join(lines).rstrip()}"


def _is_machinery(file: str) -> bool:
    return file.startswith("<frozen importlib") or file in (__file__, importlib.__file__)


def _attribute(module: ModuleType, name: str) -> TaskQ:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, TaskQ):
        return found
    hint = did_you_mean(name, _apps(module))
    if found is None:
        raise ConfigError(f"module {module.__name__!r} has no {name!r}{hint}")
    raise ConfigError(f"{module.__name__}:{name} is of type {type(found).__name__}, not a TaskQ{hint}")


def _only_app(module: ModuleType) -> TaskQ:
    """The app of a module that has one, the default app of a module that has none."""
    apps = _apps(module)
    if len(set(map(id, apps.values()))) > 1:
        choices = " or ".join(f"-A {module.__name__}:{name}" for name in apps)
        raise ConfigError(f"module {module.__name__!r} has several apps: choose {choices}")
    return next(iter(apps.values()), default_app)


def _apps(module: ModuleType) -> dict[str, TaskQ]:
    return {name: value for name, value in vars(module).items() if isinstance(value, TaskQ)}
