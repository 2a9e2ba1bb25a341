"""`Retry`: how often, how soon and after which errors an invocation is tried again. Pure."""

from __future__ import annotations

import math

from msgspec import Struct

from taskq.errors import ConfigError

RETRIES_MAX = 1_000_000
DELAY_S_MAX = 366 * 24 * 3600.0
"""A year and a day: a delay beyond is a mistake in a unit, more likely than a plan."""


class RetryLater(Exception):
    """Made by `Retry.later`, to be raised in a task."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"again in {seconds:g} s")
        self.seconds = check_delay("Retry.later", seconds)


class Retry(Struct, frozen=True):
    """Try again after a failure, `max` times at most: `Retry(5)` means six attempts.

    The n-th retry waits base * factor**(n-1) seconds, `cap` at most; with `jitter`, a random time between half of that
    and all of it, so that what failed together does not come back together. `on` are the errors it is for, `not_on`
    those it is not for, which is stronger; both as in `except`. Raises ConfigError for values that make no sense.
    """

    max: int = 3
    base: float = 1.0
    factor: float = 2.0
    cap: float = 600.0
    jitter: bool = True
    on: tuple[type[BaseException], ...] = (Exception,)
    not_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        if type(self.max) is not int or not 0 <= self.max <= RETRIES_MAX:
            raise ConfigError(f"Retry(max={self.max!r}): use a whole number from 0 to {RETRIES_MAX}")
        check_delay("Retry(base=...)", self.base)
        check_delay("Retry(cap=...)", self.cap)
        if not _is_number(self.factor) or not 1 <= self.factor <= 1000:
            raise ConfigError(f"Retry(factor={self.factor!r}): use a number from 1 to 1000")
        for name in ("on", "not_on"):
            kinds = getattr(self, name)
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds):
                raise ConfigError(f"Retry({name}={kinds!r}): use exception classes")

    def takes(self, error: BaseException) -> bool:
        """Whether it is for errors like this one."""
        return isinstance(error, self.on) and not isinstance(error, self.not_on)

    def delay_s(self, failures: int, random: float) -> float:
        """How long to wait after the `failures`-th failure. `random` is from 0 to 1, drawn by the caller."""
        power = (failures - 1) * math.log(self.factor) if self.factor > 1 else 0.0
        grown = self.base * math.exp(power) if power < 100 else math.inf  # no OverflowError after many failures
        delay = min(grown, self.cap) if self.base else 0.0
        return delay * (0.5 + random / 2) if self.jitter else delay

    @staticmethod
    def later(seconds: float) -> RetryLater:
        """Return what to raise in a task that is to be tried again in so many seconds, whatever its policy.

        It is not a failure: it counts as an attempt, but none of the `max` retries is used up.
        """
        return RetryLater(seconds)


def check_delay(what: str, seconds: object) -> float:
    """Return a delay in seconds if it is one; raise ConfigError otherwise."""
    if not _is_number(seconds) or not 0 <= seconds <= DELAY_S_MAX:  # type: ignore[operator]
        raise ConfigError(f"{what}: {seconds!r} is not a number of seconds from 0 to {DELAY_S_MAX:.0f}")
    return float(seconds)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
