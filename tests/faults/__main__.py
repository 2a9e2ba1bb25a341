"""`python -m tests.faults`: every call of the file system in taskq/broker fails, in every way, one at a time."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time

from tests.faults.campaign import EXEMPT, EXEMPT_FUNCTIONS, Campaign, missed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--sample", type=int, default=None, help="only so many faults, chosen by the seed")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    asked = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
    logging.disable(logging.CRITICAL)  # all of it is about what goes wrong
    began = time.monotonic()
    campaign = Campaign()
    campaign.run(seed=seed, sample=asked.sample)
    for failure in campaign.failures:
        print(failure)
    never = sorted(missed(campaign.injected if asked.sample is None else campaign.passed))
    for site in never:
        print(f"never hit: {site}")
    print(
        f"{campaign.runs} runs with a fault in {time.monotonic() - began:.0f} s: {len(campaign.injected)} of "
        f"{len(campaign.known)} call sites failed, {len(never)} were never hit ({len(EXEMPT)} files and "
        f"{len(EXEMPT_FUNCTIONS)} function are exempt, and closing a file); {len(campaign.failures)} runs ended "
        f"otherwise than in a documented error and a log that works and has all that was acknowledged; seed {seed}"
    )
    return 1 if campaign.failures or never else 0


if __name__ == "__main__":
    sys.exit(main())
