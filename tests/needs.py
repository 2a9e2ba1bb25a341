"""Programs that some tests need and a machine may not have.

A test asks with `require("chromium")`: where there is none it is skipped with the reason, unless TASKQ_TEST_REQUIRE
names it (or says `all`, as CI does): then it fails, so that a green run can't hide what did not run.
"""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

PROGRAMS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "redis-server": ("redis-server",),
    "java": ("java",),
    "mvn": ("mvn",),
}


def require(need: str) -> str:
    """The path of the program, or the end of the test."""
    for name in PROGRAMS[need]:
        path = shutil.which(name)
        if path is not None:
            return path
    return missing(need, f"{need} is not installed")


def missing(need: str, reason: str) -> NoReturn:
    """End the test: skipped with `reason`, or failed where TASKQ_TEST_REQUIRE asks for `need`."""
    required = os.environ.get("TASKQ_TEST_REQUIRE", "").replace(",", " ").split()
    if need in required or "all" in required:
        pytest.fail(f"{reason}, and TASKQ_TEST_REQUIRE={' '.join(required)} asks for it", pytrace=False)
    pytest.skip(reason)
