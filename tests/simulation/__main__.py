"""`python -m tests.simulation`: simulated power cuts, as many as asked for.

--seed N prints one history in words; --cuts N runs until N power cuts have been gone through, and says what was found.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
import traceback

from tests.simulation.counts import Counts
from tests.simulation.run import run

PROGRESS_S = 5.0


def show(seed: int) -> int:
    """Print the history of `seed`."""
    error = run(seed, Counts(), print)
    if error is None:
        print("all is right")
        return 0
    traceback.print_exception(error)
    return 1


def go_through(cuts: int, first: int) -> int:
    """Run seeds from `first` on until there were `cuts` power cuts."""
    counts, failed, seed = Counts(), [], first
    begun = said = time.monotonic()
    while counts.cuts < cuts:
        error = run(seed, counts)
        if error is not None:
            failed.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
        seed += 1
        if time.monotonic() - said > PROGRESS_S:
            said = time.monotonic()
            print(f"{counts.cuts} cuts, {counts.cuts / (said - begun):.0f}/s, {len(failed)} failed", flush=True)
    summarize(counts, failed, first, seed, time.monotonic() - begun)
    return 1 if failed else 0


def summarize(counts: Counts, failed: list[int], first: int, after: int, seconds: float) -> None:
    """Say what was done and found."""
    print(f"seeds {first} to {after - 1}: {counts.histories} histories in {seconds:.0f} s")
    print(
        f"  {counts.cuts} power cuts ({counts.cuts / seconds:.0f}/s), {counts.recoveries_cut} of them during recovery"
    )
    print(
        f"  {counts.kills} processes killed, {counts.fsyncs_failed} fsyncs failed, {counts.repairs} repairs, "
        f"{counts.disks_full} writes to a full disk"
    )
    print(f"  {counts.records_appended} records appended, {counts.records_checked} checked after cuts,")
    print(
        f"  {counts.records_lost} lost that nobody had been told were durable; {counts.commits} commits, "
        f"{counts.segments_removed} segments removed, {counts.topics_deleted} topics deleted"
    )
    for fate, count in sorted(counts.fates.items()):
        print(f"  {count:9} {fate}")
    print(f"  failed: {failed or 'none'}")


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="print the history of this seed, and what was wrong")
    parser.add_argument("--cuts", type=int, default=20_000, help="how many power cuts to go through (20000)")
    parser.add_argument("--first", type=int, help="the first seed (a fresh one)")
    given = parser.parse_args()
    if given.seed is not None:
        return show(given.seed)
    return go_through(given.cuts, given.first if given.first is not None else secrets.randbelow(1 << 32))


if __name__ == "__main__":
    sys.exit(main())
