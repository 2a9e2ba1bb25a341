"""A task that takes what only cloudpickle can carry."""

from __future__ import annotations

import os
from collections.abc import Callable

from taskq import TaskQ

app = TaskQ("pickled")


@app.task(topic="pickled", group="pickled", serializer="cloudpickle")
def call(function: Callable[[], str]) -> None:
    with open(os.environ["TEST_AUDIT"], "a") as audit:
        audit.write(f"{function()}\n")
