"""`make crash`: all long harnesses, one after the other, on seeds that are printed; at the end the numbers of each."""

from __future__ import annotations

import argparse
import secrets
import subprocess
import sys
from collections.abc import Sequence

_PYTEST = ("pytest", "-q", "--hypothesis-profile=crash", "--timeout=7200", "-p", "no:cacheprovider")


def harnesses(seed: int, kills: int, cuts: int, records: int) -> dict[str, Sequence[str]]:
    """What is run, by what it is."""
    seeded = ("--seed", str(seed))
    return {
        "power cuts": ("tests.simulation", "--cuts", str(cuts)),
        "kills": ("tests.crash", "--kills", str(kills), *seeded),
        "six writers": ("tests.crash.million", "--records", str(records)),
        "faults": ("tests.faults", *seeded),
        "fuzzing": (*_PYTEST, f"--hypothesis-seed={seed}", "tests/fuzz"),
        "the model": (*_PYTEST, f"--hypothesis-seed={seed}", "tests/conformance/test_model.py"),
    }


def run(arguments: Sequence[str]) -> tuple[bool, str]:
    """Whether it went well, and its last line. What it says is passed on as it comes."""
    print(f"\n$ python -m {' '.join(arguments)}", flush=True)
    last = ""
    with subprocess.Popen([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode == 0, last


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.long", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=20_000)
    parser.add_argument("--records", type=int, default=1_000_000)
    asked = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    results = {name: run(command) for name, command in harnesses(seed, asked.kills, asked.cuts, asked.records).items()}
    print(f"\nseed {seed}")
    for name, (is_well, said) in results.items():
        print(f"{'ok    ' if is_well else 'FAILED'} {name}: {said}")
    return 0 if all(is_well for is_well, _ in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
