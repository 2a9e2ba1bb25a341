"""taskq: tasks on a partitioned, persistent log.

    from taskq import task

    @task(topic="feed", group="feed")
    def fan_out(author_id: int, post_id: int) -> None: ...

    fan_out.delay(1, 2)         # here; and `taskq worker -g feed -A this_module` there

Importing this opens and reads nothing. Brokers, cloudpickle and anyio are imported when they are first used.
"""

from __future__ import annotations

from taskq.app import TaskQ, default_app
from taskq.context import Reject, current
from taskq.decorators import AsyncTask, SyncTask, Task
from taskq.errors import TaskqError
from taskq.events import Event
from taskq.middleware import Invocation, Middleware, Publication
from taskq.results import Handle
from taskq.retry import Retry

task = default_app.task
event = default_app.event
lifespan = default_app.lifespan

__all__ = [
    "AsyncTask",
    "Event",
    "Handle",
    "Invocation",
    "Middleware",
    "Publication",
    "Reject",
    "Retry",
    "SyncTask",
    "Task",
    "TaskQ",
    "TaskqError",
    "current",
    "default_app",
    "event",
    "lifespan",
    "task",
]
