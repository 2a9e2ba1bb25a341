"""What a process that runs long may use."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_file_limit() -> None:
    """Open as many files as this user may: a worker has four open for each partition it holds.

    The usual soft limit of 1,024 is there for `select`, which can't take more; nothing here uses that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):  # macOS says "unlimited", and then takes no more than OPEN_MAX
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
