"""What a run has to do and has done: the plan, the rows on disk, and who watches."""

import fcntl
import os
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ..kernels.errors import Mamba3Error
from . import records
from .hardware import identity
from .jobs import Entry, Job, Settings, Stage
from .keys import key
from .records import TIMED, Row, Status, worker

FAILED: tuple[Status, ...] = ("compile-failed", "run-failed", "timeout", "throttled", "wrong")


class RunError(Mamba3Error):
    """The run cannot go on, or cannot begin."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one worker runs: a device, and the variables that make it see that device alone."""

    device: str
    variables: dict[str, str] = field(default_factory=dict)


class Observer(Protocol):
    """Who watches a run: the progress display, or a test."""

    def planned(self, total: int, recorded: int) -> None:
        """Entries asked for, and how many of them are recorded already."""

    def stage(self, slot: Slot, job: Job, stage: Stage) -> None:
        """What a worker does now."""

    def row(self, row: Row) -> None:
        """A row was finished and is on disk."""


@dataclass(slots=True)
class Outcome:
    """What a run did."""

    rows: list[Row] = field(default_factory=list)  # made by this run
    recorded: list[Row] = field(default_factory=list)  # asked for, and found in the record file
    asked: list[str] = field(default_factory=list)  # keys, in the order asked for
    interrupted: bool = False
    left: int = 0  # entries not done, after an interrupt
    lost: list[str] = field(default_factory=list)  # places given up, each with its reason

    @property
    def all(self) -> list[Row]:
        """Every row that answers what was asked for, in that order."""
        place = {key: i for i, key in enumerate(self.asked)}
        return sorted(self.recorded + self.rows, key=lambda row: place[row.key])


class Ledger:
    """The book of one run: what is asked for, what is recorded, what was made."""

    def __init__(
        self, settings: Settings, path: Path | None, observer: Observer, *, retry: bool = False
    ) -> None:
        """Open the book.

        path: the record file to resume from and to append to, None to keep no record.
        retry: do again what failed before, but for what was wrong: that is a result.
        """
        self.settings, self.path, self.observer, self.retry = settings, path, observer, retry
        self.outcome = Outcome()

    def plan(self, jobs: Sequence[Job], environment: dict[str, Any]) -> deque[Job]:
        """What is not recorded, each entry with its key.

        Of a sweep's job that is not whole, or has times of several workers, also what has a time:
        the entries of a job are timed in the same turns. What failed is left alone.
        """
        known = {row.key: row for row in records.read(records.files_of(self.path))}
        queue: deque[Job] = deque()
        total = 0
        for job in self._keyed(jobs, environment, known):
            keyed = job.entries
            self.outcome.asked += [entry.key for entry in keyed]
            fresh = [entry for entry in keyed if self._missing(known.get(entry.key))]
            rows = [known[entry.key] for entry in keyed if entry.key in known]
            mixed = len({worker(row) for row in rows if row.times}) > 1
            if self.settings.kind == "sweep" and (fresh or mixed):
                fresh = [entry for entry in keyed if self._missing(known.get(entry.key), TIMED)]
            left = {entry.key for entry in fresh}
            self.outcome.recorded += [known[e.key] for e in keyed if e.key not in left]
            total += len(job.entries)
            if fresh:
                queue.append(Job(tuple(fresh), job.match))
        self.observer.planned(total, len(self.outcome.recorded))
        return queue

    def _keyed(
        self, jobs: Sequence[Job], environment: dict[str, Any], known: Mapping[str, Row]
    ) -> list[Job]:
        """The jobs with the key of each entry; who is in several is another row in each, and so is
        in a sweep who was timed beside others before: no contest loses it.
        """
        settings = self.settings
        keys = [[key(one, settings, environment) for one in job.entries] for job in jobs]
        count = Counter(name for names in keys for name in names)
        met = Counter((row.match, row.repeat) for row in known.values() if row.times)

        def elsewhere(job: Job, one: Entry, name: str) -> bool:
            row = known.get(name)
            if row is None or row.times is None or one.place is not None or len(job.entries) == 1:
                return False
            apart = settings.kind == "sweep" and row.match != job.match
            return apart and met[row.match, row.repeat] > 1

        found = []
        for job, names in zip(jobs, keys, strict=True):
            entries = [
                replace(one, key=key(one, settings, environment, beside=job.match))
                if count[name] > 1 or elsewhere(job, one, name)
                else replace(one, key=name)
                for one, name in zip(job.entries, names, strict=True)
            ]
            found.append(replace(job, entries=tuple(entries)))
        return found

    def _missing(self, row: Row | None, again: Sequence[Status] = ()) -> bool:
        if row is None or row.status == "throttled" or row.status in again:
            return True
        return self.retry and row.status in FAILED and row.status != "wrong"

    def keep(self, row: Row) -> None:
        """Put a row on disk, and tell."""
        if self.path is not None:
            records.append(self.path, row)
        self.outcome.rows.append(row)
        self.observer.row(row)


def check_alike(first: dict[str, Any], other: dict[str, Any]) -> None:
    """Raise RunError if two workers differ in what a key depends on."""
    one, two = identity(first), identity(other)
    differ = [name for name, value in one.items() if two[name] != value]
    if differ:
        raise RunError(
            f"workers differ in {', '.join(differ)}: choose equal GPUs, with --gpus or "
            "CUDA_VISIBLE_DEVICES, and one run for each kind"
        )


@contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Hold the folder of a record file, so that two runs do not do the same work twice."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another run is writing to {path.parent}: wait, or use --out") from None
        yield
    finally:
        os.close(folder)
