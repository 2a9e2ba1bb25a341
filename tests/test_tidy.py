"""What no linter checks: sizes, and which calls live in which room. The lists of exceptions only ever get shorter."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60

LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}

UNDOCUMENTED = {
    "taskq/broker/port.py: TopicPartition",
    "taskq/broker/port.py: TopicDescription",
    "taskq/broker/port.py: GroupDescription",
    "taskq/broker/port.py: Producer",
    "taskq/broker/port.py: Admin",
}

CONFINED = {
    "fcntl": {"taskq/broker/log/locks.py", "taskq/worker/executors/child.py"},
    "socket": {
        "taskq/broker/wakeups.py",
        "taskq/worker/executors/calls.py",
        "taskq/worker/http.py",
        "taskq/worker/link.py",
        "taskq/worker/supervisor.py",
    },
    "socketserver": {"taskq/worker/http.py"},
    "prometheus_client": {"taskq/metrics.py"},
    "confluent_kafka": {"taskq/broker/kafka/*"},
    "watchfiles": {"taskq/worker/reload.py"},
    "cloudpickle": {"taskq/serializers.py"},
    "pickle": {"taskq/serializers.py"},
    "click": {"taskq/cli/*"},
}
"""Module -> the only files of taskq/ that may import it."""

CONFINED_CALLS = {
    "os.fsync": {"taskq/broker/log/files.py"},
    "os.fdatasync": {"taskq/broker/log/files.py"},
    "os.environ": {"taskq/config.py"},
    "os.getenv": {"taskq/config.py"},
}
"""Attribute of a module -> the only files of taskq/ that may name it."""

SLEEPS = {"time.sleep", "asyncio.sleep", "anyio.sleep", "trio.sleep"}


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def dotted(node: ast.AST) -> str:
    """`a.b.c` of an attribute chain, else an empty string."""
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return node.id if isinstance(node, ast.Name) else ""


def names_used(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Dotted names that are used or imported from their module, with their lines, whatever alias they go by."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases.update({alias.asname: alias.name for alias in node.names if alias.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (name := dotted(node)):
            head, _, rest = name.partition(".")
            yield f"{aliases.get(head, head)}.{rest}", node.lineno


def modules_imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0], node.lineno


def allowed(name: str, where: set[str]) -> bool:
    return name in where or any(one.endswith("/*") and name.startswith(one[:-1]) for one in where)


def lines(found: Iterable[object]) -> str:
    return "".join(f"\n{one}" for one in found) + "\n"


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + node.name, node
            yield from functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{prefix}{node.name}.")


def test_no_file_is_longer_than_400_lines():
    lengths = {
        name_of(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in python_files("taskq", "tests", "examples", "benchmarks")
    }
    too_long = {name: n for name, n in lengths.items() if n > LONG_FILES.get(name, FILE_LINES_MAX)}
    assert not too_long, lines(too_long.items())
    short_again = {name for name in LONG_FILES if lengths.get(name, 0) <= FILE_LINES_MAX}
    assert not short_again, "take these off the list"


def test_no_function_is_longer_than_60_lines():
    lengths = {
        f"{name_of(path)}: {name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in python_files("taskq", "tests", "examples", "benchmarks")
        for name, node in functions(tree_of(path))
    }
    too_long = {name: n for name, n in lengths.items() if n > LONG_FUNCTIONS.get(name, FUNCTION_LINES_MAX)}
    assert not too_long, lines(too_long.items())
    short_again = {name for name in LONG_FUNCTIONS if lengths.get(name, 0) <= FUNCTION_LINES_MAX}
    assert not short_again, "take these off the list"


def test_tests_never_sleep():
    found = [
        f"{name_of(path)}:{line}: {name}"
        for path in python_files("tests")
        if path.parent.name != "apps"  # what these run is no test: tasks sleep to be slow
        for name, line in names_used(tree_of(path))
        if name in SLEEPS
    ]
    assert not found, lines(found) + "wait for what is to happen, with a bound"


def test_nothing_is_left_for_later():
    words = re.compile("|".join([r"\bTO" + r"DO\b", r"\bFIX" + r"ME\b"]))
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in python_files("taskq", "tests", "examples", "benchmarks")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if words.search(line)
    ]
    assert not found, lines(found)


def test_no_except_is_bare():
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files("taskq", "tests", "examples", "benchmarks")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not found, lines(found)


@pytest.mark.parametrize("module", sorted(CONFINED))
def test_a_module_is_imported_only_where_it_belongs(module: str):
    found = [
        f"{name_of(path)}:{line}"
        for path in python_files("taskq")
        for name, line in modules_imported(tree_of(path))
        if name == module and not allowed(name_of(path), CONFINED[module])
    ]
    assert not found, lines(found)


@pytest.mark.parametrize("call", sorted(CONFINED_CALLS))
def test_a_call_is_made_only_where_it_belongs(call: str):
    found = [
        f"{name_of(path)}:{line}"
        for path in python_files("taskq")
        for name, line in names_used(tree_of(path))
        if (name == call or name.startswith(call + ".")) and not allowed(name_of(path), CONFINED_CALLS[call])
    ]
    assert not found, lines(found)


def test_every_public_class_and_function_says_what_it_is():
    undocumented = {
        f"{name_of(path)}: {node.name}"
        for path in python_files("taskq")
        for node in tree_of(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and not node.name.startswith("_")
        and ast.get_docstring(node) is None
        and not (isinstance(node, ast.FunctionDef) and len(node.body) == 1)  # one statement says it itself
        and not any(dotted(decorator).endswith("overload") for decorator in node.decorator_list)
    }
    assert undocumented <= UNDOCUMENTED, lines(undocumented - UNDOCUMENTED)
    assert UNDOCUMENTED - undocumented == set(), "take these off the list"


def test_every_module_says_what_it_is():
    silent = [
        name_of(path)
        for path in python_files("taskq")
        if tree_of(path).body and ast.get_docstring(tree_of(path)) is None
    ]
    assert not silent, lines(silent)
