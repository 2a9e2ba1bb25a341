"""What all tests share: both event loops, no settings from the developer's own shell, hypothesis without a clock."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.kafka.fixtures"]

settings.register_profile("shared-machine", deadline=None)
# For `make crash`, which says --hypothesis-profile=crash.
settings.register_profile(
    "crash", deadline=None, max_examples=5000, print_blob=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("shared-machine")

for _name in [name for name in os.environ if name.startswith("TASKQ_") and not name.startswith("TASKQ_TEST_")]:
    del os.environ[_name]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Async tests (`pytestmark = pytest.mark.anyio`) run on both."""
    return str(request.param)
