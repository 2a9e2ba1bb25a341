"""`python -m benchmarks`: taskq beside its peers. Standard library only until `.venv-bench` is entered."""

from __future__ import annotations

import argparse
import signal
import sys

from benchmarks import environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="taskq beside its peers, in one run.")
    parser.add_argument("--quick", action="store_true", help="one short repetition: to see that it works, not to quote")
    parser.add_argument("--only", action="append", metavar="PEER", help="this peer only; may be given several times")
    parser.add_argument("--measure", action="append", metavar="NAME", help="this measure only; likewise")
    parser.add_argument("--write-readme", action="store_true", help="put the tables into benchmarks/README.md")
    options = parser.parse_args()
    environment.enter(sys.argv[1:])
    from benchmarks import bench

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(bench.run(options))
    except KeyboardInterrupt:
        sys.exit(130)


main()
