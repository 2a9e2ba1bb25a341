"""The scenario, once for each place and each way in which that place can fail."""

from __future__ import annotations

import gc
import shutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from random import Random

from attrs import define, field

from tests.faults.check import check, open_descriptors
from tests.faults.injector import ERRORS, Fault, FaultyFiles, Site, sites
from tests.faults.scenario import Scenario, abandon

EXEMPT = {
    "log/verify.py": "`taskq log verify` only reads, and changes nothing that could be left half done",
    "log/inspection.py": "the same",
    "log/view.py": "the same",
    "log/dump.py": "`taskq log dump` only reads",
}
"""Files of taskq/broker whose calls are not made to fail, and why."""

EXEMPT_FUNCTIONS = {
    ("log/lookup.py", "_remove_indexes"): "called only if another process replaces a segment between two calls here",
}


def missed(hit: AbstractSet[Site]) -> set[Site]:
    """The sites that should have been hit and were not. Closing fails nowhere: see injector.ERRORS."""
    could = {site for site in sites().values() if site.file not in EXEMPT and ERRORS[site.method]}
    return {site for site in could - hit if (site.file, site.function) not in EXEMPT_FUNCTIONS}


@define
class Campaign:
    """What has been injected, and what came of it."""

    known: frozenset[Site] = field(factory=lambda: frozenset(sites().values()))
    passed: set[Site] = field(factory=set)
    injected: set[Site] = field(factory=set)
    runs: int = 0
    failures: list[str] = field(factory=list)

    def run(self, seed: int, sample: int | None = None) -> None:
        """All faults, or some. Sites that only a failure leads to fail in their turn, after that failure."""
        plain = self.once(())
        faults = list(_faults(plain))
        if sample is not None:
            # All those, too, that lead to where nothing else does.
            hidden = {(site.file, site.function) for site in missed(self.passed)}
            leading = [fault for fault in faults if (fault.site.file, fault.site.function) in hidden and fault.nth == 1]
            faults = leading + Random(seed).sample(faults, min(sample, len(faults)))
        for fault in faults:
            passed = self.once([fault])
            for site in passed.keys() - plain.keys() - self.injected:
                for code in ERRORS[site.method]:
                    self.once([fault, Fault(site, 1, code)])

    def once(self, faults: Sequence[Fault]) -> Counter[Site]:
        """One run with these faults; returns how often each site was passed."""
        files, root = FaultyFiles(), tempfile.mkdtemp(prefix="taskq-faults-")
        scenario = Scenario(Path(root) / "log", files)
        files.faults = faults
        gc.collect()
        before = open_descriptors()
        try:
            scenario.run()
            passed = files.passed.copy()
            check(scenario)
            gc.collect()  # a mapping keeps a descriptor until it goes
            assert open_descriptors() <= before, f"{open_descriptors() - before} descriptors were left open"
            self.injected |= {fault.site for fault in faults} if files.failed == len(faults) else set()
        except Exception:
            passed = files.passed.copy()
            abandon(scenario)
            self.failures.append(f"{' and '.join(map(str, faults))}\n{traceback.format_exc()}")
        self.passed |= passed.keys()
        self.runs += 1
        shutil.rmtree(root)
        return passed


def _faults(passed: Counter[Site]) -> Iterator[Fault]:
    for site in sorted(passed):
        for code in ERRORS[site.method]:
            for nth in sorted({1, passed[site]}):
                yield Fault(site, nth, code)
