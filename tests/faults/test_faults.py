"""Every call of the file system may fail: a share of `python -m tests.faults`, with a new seed each time.

That all sites are passed at all is checked here too: one that no step of the scenario reaches can't be made to fail.
"""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.timeout(120)  # on a quiet machine it takes ten seconds
def test_wherever_the_file_system_fails_the_error_is_documented_and_nothing_is_lost():
    ran = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--sample", "15"], capture_output=True, text=True, timeout=115
    )
    assert not ran.returncode, f"{ran.stdout}\n{ran.stderr}"
