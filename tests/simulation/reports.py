"""recovery.json says what was cut."""

from __future__ import annotations

import json
from pathlib import Path

from taskq.broker.log import names
from tests.simulation.model import Wrong


def log_sizes(directory: str) -> dict[int, int]:
    """Bytes of a partition's segments, by base offset, as a power cut has left them."""
    return {int(path.stem): path.stat().st_size for path in Path(directory).glob("*.log")}


def check_report(directory: str, end: int, sizes: dict[int, int]) -> None:
    """Raises Wrong unless the last report fits a log that was of `sizes` and now ends at `end`."""
    if not sizes:
        return  # a new partition: there is nothing to report
    report = json.loads(Path(names.recovery_report(directory)).read_text(encoding="utf-8"))[-1]
    state = report["state"]
    if state["next_offset"] != end:
        raise Wrong(f"recovery.json says that the log ends at {state['next_offset']}, not at {end}")
    if report["missing"] is not None:
        raise Wrong(f"recovery says that offsets {report['missing']} are gone, though they were synced")
    had = sizes.get(state["segment_base"], 0)
    if report["cut_bytes"] != had - state["position"]:
        raise Wrong(f"recovery.json says {report['cut_bytes']} bytes of {had} were cut to {state['position']}")
