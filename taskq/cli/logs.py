"""Where the log messages of a long-running command go."""

from __future__ import annotations

import logging
import sys


def log_to_stderr() -> None:
    """Show messages of level INFO and above on stderr, with the process that says it."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
    )
