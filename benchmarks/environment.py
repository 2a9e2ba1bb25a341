"""A virtual environment for the peers, `.venv-bench`, so that the project's own stays clean. Standard library only.

It is made on first use, and brought up to date when `requirements.txt` or the project's `pyproject.toml` changes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VENV = PROJECT / ".venv-bench"
_INPUTS = (PROJECT / "benchmarks" / "requirements.txt", PROJECT / "pyproject.toml")


def enter(arguments: Sequence[str], module: str = "benchmarks") -> None:
    """Return if this is the bench's own Python and up to date; else make it so, and start over in it."""
    state = hashlib.sha256(b"".join(path.read_bytes() for path in _INPUTS)).hexdigest()
    stamp = VENV / "installed"
    if not stamp.exists() or stamp.read_text() != state:
        _install()
        stamp.write_text(state)
    elif Path(sys.prefix) == VENV:
        return
    python = str(VENV / "bin" / "python")
    os.execv(python, [python, "-m", module, *arguments])


def _install() -> None:
    print(f"installing the peers into {VENV.name}", flush=True)
    if not (VENV / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        (VENV / ".gitignore").write_text("*\n")
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(_INPUTS[0]), "--editable", f"{PROJECT}[kafka]"], check=True)
