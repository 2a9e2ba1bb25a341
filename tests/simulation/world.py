"""One history: processes that publish, sync, commit, create topics, close, die and find disks failing, until the power
goes, again and again; and after each cut the log is opened and held against the model.

Everything follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from taskq.broker.log import names, retention
from taskq.broker.log.head import NOTICE, SYNCED, Notice
from taskq.broker.port import Committed, Record, TopicPartition
from taskq.errors import BrokerUnavailable, CorruptLog, StorageError, StorageFull
from taskq.topics import TopicSettings
from tests.simulation.counts import Counts
from tests.simulation.disk import Disk, remove_directory
from tests.simulation.files import Fate, Killed, PowerCut
from tests.simulation.model import PartitionModel, Plain, Wrong
from tests.simulation.process import Process
from tests.simulation.reports import check_report, log_sizes
from tests.simulation.topics import Topics, forget

PROCESSES_MAX = 3
GROUPS = ("mail", "search")
FIRST_MS = 1_700_000_000_000


class World:
    """The disk, the processes, the model. `log` gets each step in words."""

    def __init__(self, seed: int, base: str, counts: Counts, log: Callable[[str], None] | None = None) -> None:
        self.rng = Random(seed)
        self.counts = counts
        self._say = log or (lambda text: None)
        self._base = base
        self._disks = 0
        self.fate = Fate(self.rng)
        self.fate.fates = counts.fates
        self.disk = Disk(self._new_base())
        self.processes: list[Process] = []
        self._named = 0
        self.topics = Topics()
        self.partitions = self.topics.partitions
        self._now_ms = FIRST_MS
        self._number = 0
        self._segment_bytes = self.rng.choice((400, 1500, 6000, 20_000, 1 << 20))
        self._value_bytes_max = self.rng.choice((10, 300, 2500))
        self._hazard = self.rng.choice((15, 50, 150))

    def _new_base(self) -> str:
        self._disks += 1
        base = f"{self._base}/{self._disks}"
        Path(base).mkdir()
        return base

    # -- a history

    def run(self, cuts: int) -> None:
        """Go on until the power has gone `cuts` times and the log was found right each time. Raises Wrong."""
        self.counts.histories += 1
        for _ in range(cuts):
            self.fate.cut_at = self.fate.calls + self.rng.randrange(1, self._hazard)
            try:
                while True:
                    self._step()
            except PowerCut:
                self._cut("")
            self._recover()
        for process in self.processes:
            process.die()

    def _cut(self, where: str) -> None:
        self.counts.cuts += 1
        claimed = self._claims()
        for process in self.processes:
            process.die()
        self.processes.clear()
        self._say(f"-- the power goes{where} (call {self.fate.calls})")
        for tp, offset in claimed.items():
            model = self.partitions[tp]
            if not model.is_suspect:  # else it may be the claim of a repair that we know nothing of yet
                model.synced = max(model.synced, min(offset, model.end))
        before, self.disk = self.disk, self.disk.power_cut(self.rng, self._new_base(), self.counts.fates)
        self.fate.failed.clear()
        remove_directory(before.base)

    def _claims(self) -> dict[TopicPartition, int]:
        """What the heads say is on stable storage: that must be true as well."""
        claimed: dict[TopicPartition, int] = {}
        for process in self.processes:
            for tp, partition in process.opened().items():
                if tp in self.partitions and not partition.is_deleted:
                    claimed[tp] = partition._words[SYNCED]
        return claimed

    # -- steps

    def _step(self) -> None:
        if not self.processes or (len(self.processes) < PROCESSES_MAX and self.rng.random() < 0.08):
            self._start()
            return
        process = self.rng.choice(self.processes)
        step = self.rng.choices(_STEPS, _STEP_WEIGHTS)[0]
        try:
            step(self, process)
        except Killed:
            self.counts.kills += 1
            self._say(f"   {process.name} is killed")
            self._end(process)
        except (StorageError, StorageFull, BrokerUnavailable, CorruptLog, OSError) as error:
            self._say(f"   {process.name}: {type(error).__name__}: {error}")
            if not process.files.faults and not self._may_fail(process):
                raise Wrong(f"{process.name} fails, and nothing else did: {error!r}") from error
            self.counts.disks_full += isinstance(error, StorageFull)
            process.has_failed = True  # it may refuse from here on, whatever others do
            self._note_failures()
            if self.rng.random() < 0.6:
                self._end(process)
        self._note_failures()

    def _may_fail(self, process: Process) -> bool:
        """Whether something has failed elsewhere that this process must hear of, or has heard of before."""
        is_suspect = any(model.is_suspect for model in self.partitions.values())
        return is_suspect or process.has_failed or self.counts.repairs > process.repairs_before

    def _note_failures(self) -> None:
        """Logs whose fsync failed are suspect until they are repaired; those of deleted topics are nobody's."""
        for path in sorted(self.fate.failed):
            parts = path.removeprefix(f"{self.disk.base}/data/").split("/")
            if parts[0] == "groups":
                _, group, _, topic, number = parts
                if model := self.topics.find(TopicPartition(topic, int(number))):
                    model.group(group).fsync_failed()
            elif path.endswith(".log"):
                _, topic, number, _ = parts
                if model := self.topics.find(TopicPartition(topic, int(number))):
                    model.is_suspect = True
            self.counts.fsyncs_failed += 1
            self._say(f"   the fsync of {path.removeprefix(self.disk.base)} has failed")
        self.fate.failed.clear()

    def _start(self) -> None:
        self._named += 1
        mode = self.rng.choice(("fsync", "fsync", "interval", "os"))
        process = Process(f"p{self._named}", mode, self.disk, self.fate, self._segment_bytes)
        self._say(f"{process.name} starts, durability {mode}, segments of {self._segment_bytes} bytes")
        process.repairs_before = self.counts.repairs
        self.processes.append(process)

    def _end(self, process: Process) -> None:
        process.die()
        self.processes.remove(process)

    def _open(self, process: Process, tp: TopicPartition) -> PartitionModel:
        """Open the partition if it is not, which repairs it if an fsync has failed."""
        model = self.partitions[tp]
        partition = process.partition(tp)
        if model.is_suspect and not partition._words[NOTICE] & Notice.FAILED:
            lost = model.repaired(process.read(tp), partition.bounds().start, partition.end())
            self.counts.repairs += 1
            self.counts.records_lost += lost
            self._say(f"   {tp} has been repaired: {lost} offsets have lost their records")
        return model

    def _pick(self) -> TopicPartition | None:
        return self.rng.choice(list(self.partitions)) if self.partitions else None

    def _plain(self, count: int) -> list[Plain]:
        rng = self.rng
        self._now_ms += rng.randrange(5)
        plain: list[Plain] = []
        for _ in range(count):
            self._number += 1
            value = b"%d:" % self._number + bytes([self._number & 0xFF]) * rng.randrange(self._value_bytes_max)
            key = b"k%d" % rng.randrange(9) if rng.random() < 0.2 else None
            headers = (("h", b"%d" % self._number),) if rng.random() < 0.1 else ()
            plain.append((self._now_ms, key, value, headers))
        return plain

    def _append(self, process: Process, count: int = 1) -> None:
        tp = self._pick()
        if tp is None:
            self._create_topic(process)
            return
        model = self._open(process, tp)
        plain = self._plain(count)
        self._say(f"{process.name} appends {count} to {tp} at {model.end}")
        try:
            offset = process.append(tp, plain)
        except BaseException:
            model.failed(plain)
            raise
        model.appended(offset, plain)
        self.counts.records_appended += count
        process.unsynced.setdefault(tp, []).append(model.end - 1)
        if process.mode == "fsync":
            self._sync_one(process, tp)

    def _append_many(self, process: Process) -> None:
        self._append(process, self.rng.randrange(2, 12))

    def _sync_one(self, process: Process, tp: TopicPartition) -> None:
        model = self.partitions[tp]
        unsynced, process.unsynced[tp] = process.unsynced.get(tp, []), []
        end = max(unsynced, default=0) + 1
        process.sync(tp)
        model.check_acknowledged(unsynced)
        model.synced = max(model.synced, end)
        self._say(f"   {tp} is synced up to {end}")

    def _sync(self, process: Process) -> None:
        """As the flusher does it."""
        self._say(f"{process.name} syncs")
        for tp, partition in process.opened().items():
            if partition.needs_sync and tp in self.partitions:  # else the topic's deleter died halfway
                self._sync_one(process, tp)

    def _commit(self, process: Process) -> None:
        tp = self._pick()
        if tp is None:
            return
        model = self._open(process, tp)
        group = self.rng.choice(GROUPS)
        metadata = self.rng.randbytes(self.rng.choice((0, 0, 5, 700)))
        committed = Committed(self.rng.randrange(model.end + 1), metadata)
        self._say(f"{process.name} commits {committed.offset} and {len(metadata)} bytes for {group} in {tp}")
        if not process.take(group, tp):
            return
        if not process.has_committed(group, tp):
            model.group(group).taken()
        try:
            process.commit(group, tp, committed)
        except BaseException:
            model.group(group).failed.append((committed, model.end))
            raise
        model.group(group).committed(committed, model.end)
        self.counts.commits += 1

    def _create_topic(self, process: Process) -> None:
        topic = self.topics.free
        if topic is not None:
            count = self.rng.choice((1, 1, 2))
            self._say(f"{process.name} creates {topic} with {count} partitions, if nobody had begun to")
            self.topics.create(process, topic, count)
            forget(topic, self.processes)  # what they hold is the one before, if whoever deleted that has died

    def _delete_topic(self, process: Process) -> None:
        tp = self._pick()
        if tp is not None:
            self._say(f"{process.name} deletes {tp.topic}")
            self.topics.delete(process, tp.topic, self.processes)
            self.counts.topics_deleted += 1

    def _finish(self, process: Process) -> None:
        self._say(f"{process.name} finishes what those left who created or deleted topics")
        process.directory.catalogue.finish()

    def _close(self, process: Process) -> None:
        self._say(f"{process.name} closes")
        if process.mode != "os":
            self._sync(process)
        process.close()
        self.processes.remove(process)

    def _kill(self, process: Process) -> None:
        process.files.kill_in = self.rng.randrange(1, 6)

    def _fail_sync(self, process: Process) -> None:
        process.files.fail_sync_in = self.rng.randrange(1, 4)

    def _fill(self, process: Process) -> None:
        process.files.fill_in = self.rng.randrange(1, 5)

    def _read(self, process: Process) -> None:
        tp = self._pick()
        if tp is None:
            return
        model = self._open(process, tp)
        partition = process.partition(tp)
        try:
            found = process.read(tp)
        except CorruptLog:
            if not model.is_suspect:
                raise
            return
        model.check(found, partition.bounds().start, partition.end())
        for group in GROUPS:
            model.check_commit(group, process.committed(group, tp))

    def _clean(self, process: Process) -> None:
        tp = self._pick()
        if tp is None:
            return
        model = self._open(process, tp)
        settings = TopicSettings(retention_bytes=self.rng.choice((0, 1000, 5000)), unfinished="delete")
        self._say(f"{process.name} cleans {tp} down to {settings.retention_bytes} bytes")
        model.is_cleaning = True
        gone = retention.clean(process.files, process.partition(tp), settings, self._now_ms, model.end)
        model.cleaned(process.partition(tp).bounds().start)
        self.counts.segments_removed += len(gone)

    # -- after a cut

    def _recover(self) -> None:
        """Open what the cut has left, perhaps with another cut in the middle of that, and hold it against the model."""
        settled: set[TopicPartition] = set()
        chance = 0.3
        while True:
            is_to_be_cut = self.rng.random() < chance
            chance /= 2
            self.fate.cut_at = self.fate.calls + self.rng.randrange(1, 30) if is_to_be_cut else None
            try:
                self._start()
                self.topics.check(self.processes[-1])
                for tp, model in self.partitions.items():
                    if tp in settled:
                        self._check_again(tp, model)
                    else:
                        self._settle(tp, model)
                        settled.add(tp)
                break
            except PowerCut:
                self.counts.recoveries_cut += 1
                self._cut(" during recovery")
        self.fate.cut_at = None
        if self.rng.random() < 0.25:
            self._reboot()

    def _settle(self, tp: TopicPartition, model: PartitionModel) -> None:
        process = self.processes[-1]
        directory = self._directory_of(tp)
        sizes = log_sizes(directory)
        partition = process.partition(tp)
        end = partition.end()
        found = process.read(tp)
        had_synced = model.synced
        lost = model.cut(found, partition.bounds().start, end)
        self.counts.records_lost += lost
        self.counts.records_checked += len(found)
        self._say(f"   {tp} ends at {end}; {had_synced} was synced, {lost} records are lost")
        check_report(directory, end, sizes)
        for group in GROUPS:
            model.cut_commit(group, process.committed(group, tp))
        self._look_up(process, tp, found)

    def _check_again(self, tp: TopicPartition, model: PartitionModel) -> None:
        """Recovered once more: nothing is different."""
        process = self.processes[-1]
        partition = process.partition(tp)
        model.check(process.read(tp), partition.bounds().start, partition.end())
        for group in GROUPS:
            model.check_commit(group, process.committed(group, tp))

    def _look_up(self, process: Process, tp: TopicPartition, found: list[Record]) -> None:
        """Reading from anywhere gives what reading from the start gave: indexes lead where they should."""
        for _ in range(min(2, len(found))):
            at = self.rng.randrange(len(found))
            again = process.partition(tp).cursor(found[at].offset)
            records = again.read(1)
            again.close()
            if records != found[at : at + len(records)] or not records:
                raise Wrong(f"reading {tp} from offset {found[at].offset} gives {records[:1]}")

    def _directory_of(self, tp: TopicPartition) -> str:
        return names.partition(names.topic(f"{self.disk.base}/data", tp.topic), tp.partition)

    def _reboot(self) -> None:
        """A boot that loses nothing: recovery must find what it found before."""
        self._say("-- a boot without loss")
        for process in self.processes:
            process.die()
        self.processes.clear()
        self.disk.boot += 1
        self._start()
        for tp, model in self.partitions.items():
            self._check_again(tp, model)


_STEPS: list[Callable[[World, Process], None]] = [
    World._append,
    World._append_many,
    World._sync,
    World._commit,
    World._create_topic,
    World._close,
    World._kill,
    World._fail_sync,
    World._fill,
    World._read,
    World._clean,
    World._delete_topic,
    World._finish,
]
_STEP_WEIGHTS = [40, 14, 8, 12, 4, 4, 4, 4, 2, 5, 3, 2, 1]
