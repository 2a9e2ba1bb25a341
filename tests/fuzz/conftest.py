"""`--hypothesis-profile=crash` is the long run of `make crash`; without it there are hypothesis's 100 examples."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "crash", deadline=None, max_examples=5000, print_blob=True, suppress_health_check=list(HealthCheck)
)
