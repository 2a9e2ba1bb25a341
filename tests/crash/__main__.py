"""`python -m tests.crash`: kill processes that publish, read and consume, and check that nothing is lost.

The seed decides what is written and in what order who is killed; the moments are the machine's own.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time

from tests.crash.kills import Cast, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--writers", type=int, default=Cast().writers)
    parser.add_argument("--members", type=int, default=Cast().members)
    parser.add_argument("--readers", type=int, default=Cast().readers)
    asked = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    done, found = run(
        asked.kills, seed, Cast(asked.writers, asked.members, asked.readers), lambda line: print(line, flush=True)
    )
    print(
        f"{done} SIGKILLs in {time.monotonic() - began:.0f} s: {found.acknowledged:,} records acknowledged, all "
        f"there, at their offsets, byte for byte, once, in each writer's order; of what was in flight "
        f"{found.in_flight_there:,} more, in whole batches; {found.segments:,} segments without a gap; leases free "
        f"after at most {found.failover_ms} ms; seed {seed}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
