"""What a run of the simulation has done so far."""

from __future__ import annotations

from collections import Counter

from attrs import define, field


@define
class Counts:
    """What a run has done so far."""

    histories: int = 0
    cuts: int = 0
    recoveries_cut: int = 0
    kills: int = 0
    fsyncs_failed: int = 0
    disks_full: int = 0
    repairs: int = 0
    records_appended: int = 0
    records_checked: int = 0
    records_lost: int = 0
    """Not acknowledged as durable, so allowed."""
    commits: int = 0
    segments_removed: int = 0
    topics_deleted: int = 0
    fates: Counter[str] = field(factory=Counter)
