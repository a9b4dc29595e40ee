"""The parent of a run: gives jobs to one worker per GPU, writes rows, survives its workers.

A worker that dies or hangs costs the entry that it was busy with one row. If it was busy with
several (they are timed interleaved), each is run again by itself, and the guilty one dies alone.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from ..kernels.registry import INTERPRETERS
from . import plugins
from .jobs import Done, Entry, Expect, Finished, Hello, Job, Message, Settings, Stage, Start
from .ledger import Ledger, Observer, Outcome, RunError, Slot, check_alike, locked
from .process import Process
from .records import Status
from .rows import blank_row

Before = Callable[[Sequence[Job], dict[str, Any]], None]
START_S = 300.0  # for a worker to import its packages and answer


@dataclass(slots=True)
class Seat:
    """A slot with its worker, and the job that it has now."""

    slot: Slot
    process: Process | None = None
    environment: dict[str, Any] | None = None  # as of the last greeting
    greeted: bool = False
    repeat: int | None = None  # that its worker is for
    deaths: int = 0  # of its workers in a row that never greeted
    job: Job | None = None
    left: dict[int, Entry] = field(default_factory=dict)
    stage: Stage = field(default_factory=lambda: Stage(None, "starting"))

    @property
    def waiting(self) -> bool:
        """Whether a message is due."""
        return self.process is not None and (self.job is not None or not self.greeted)


class Runner:
    """One run over some jobs."""

    def __init__(
        self,
        settings: Settings,
        slots: Sequence[Slot],
        path: Path | None,
        observer: Observer,
        *,
        timeout_s: float = 300.0,
        retry: bool = False,
        before: Before | None = None,
    ) -> None:
        """Prepare a run.

        path: the record file to resume from and to append to, None to keep no record.
        timeout_s: longest silence of a worker, which speaks before every stage of every entry.
        retry: run what failed before again.
        before: called with the jobs that are not recorded and the workers' environment.
        """
        self.before = before
        self.settings, self.path, self.observer = settings, path, observer
        self.timeout_s = timeout_s
        self.ledger = Ledger(settings, path, observer, retry=retry)
        self.outcome = self.ledger.outcome
        self.seats = [Seat(slot) for slot in slots]
        self.queue: deque[Job] = deque()

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Run every job that is not recorded; an interrupt ends it early and keeps what is done.

        Raises RunError if workers cannot start, or if another run writes to the same records.
        """
        with locked(self.path):
            try:
                environment = self.open()
                self.queue = self.ledger.plan(jobs, environment)
                if self.before is not None:
                    self._expect()
                    self.before(tuple(self.queue), environment)
                self.serve()
            except KeyboardInterrupt:
                self.outcome.interrupted = True
                queue = self.queue if self.outcome.asked else jobs  # before there was a plan: all
                queued = sum(len(job.entries) for job in queue)
                self.outcome.left = queued + sum(len(seat.left) for seat in self.seats)
            finally:
                self.close()
        return self.outcome

    def open(self) -> dict[str, Any]:
        """Start the first worker; returns its environment. Raises RunError if it does not start,
        and ImportError for a plugin: it is loaded here too, since a row has its kernel's source.
        """
        plugins.load(self.settings.plugins)
        self._start(self.seats[0])
        while not self.seats[0].greeted:
            self._turn()
        return self.seats[0].environment or {}

    def serve(self) -> None:
        """Work until the queue is empty; raises RunError if workers cannot start."""
        while self.queue or any(seat.job for seat in self.seats):
            self._assign()
            self._turn()

    def close(self) -> None:
        """End every worker."""
        for seat in self.seats:
            if seat.process is not None:
                seat.process.kill()
                seat.process = None

    def _start(self, seat: Seat) -> None:
        ceilings = (seat.environment or {}).get("ceilings")
        variables = dict(seat.slot.variables)
        if self.settings.interpret:
            variables |= dict.fromkeys(INTERPRETERS.values(), "1")
        seat.process = Process(Start(self.settings, seat.slot.device, ceilings), variables)
        seat.greeted = False
        seat.stage = Stage(None, "starting")

    def _expect(self) -> None:
        """Let the first worker import what it will need, while others compile."""
        assert self.seats[0].process is not None
        entries = (entry for job in self.queue for entry in job.entries)
        needed = dict.fromkeys((entry.problem.op, entry.backend) for entry in entries)
        self.seats[0].process.give(Expect(tuple(needed)))

    def _assign(self) -> None:
        """Give every idle seat a job, and a worker where it has none."""
        for seat in self.seats:
            if seat.job is not None or not self.queue:
                continue
            seat.job = self.queue.popleft()
            if seat.process is not None and seat.repeat not in (None, seat.job.repeat):
                self._bury(seat)  # what one process has in common, another repeat must not share
            if seat.process is None:
                self._start(seat)
            seat.repeat = seat.job.repeat
            seat.left = dict(enumerate(seat.job.entries))
            if seat.greeted:
                self._give(seat)

    def _give(self, seat: Seat) -> None:
        assert seat.process is not None
        assert seat.job is not None
        seat.stage = Stage(None, "starting")
        seat.process.give(seat.job)

    def _turn(self) -> None:
        """Wait for messages or the next deadline, and deal with them."""
        seats = {
            seat.process.connection: seat for seat in self.seats if seat.process and seat.waiting
        }
        patience = min(self._deadline(seat) for seat in seats.values()) - time.monotonic()
        ready = wait(list(seats), timeout=max(patience, 0.0))
        for connection in ready:
            seat = seats[connection]  # type: ignore[index]
            assert seat.process is not None
            message = seat.process.hear()
            if message is None:
                self._lost(seat, "run-failed", seat.process.why_dead())
            else:
                self._take(seat, message)
        for seat in self.seats:
            if (
                seat.process is not None
                and seat.waiting
                and time.monotonic() > self._deadline(seat)
            ):
                limit = self.timeout_s if seat.greeted else START_S
                where = seat.process.where_stuck()
                self._lost(seat, "timeout", f"no answer for {limit:g} s, in {where}")

    def _deadline(self, seat: Seat) -> float:
        assert seat.process is not None
        return seat.process.heard + (self.timeout_s if seat.greeted else START_S)

    def _take(self, seat: Seat, message: Message) -> None:
        match message:
            case Hello(environment):
                self._greet(seat, environment)
            case Stage():
                seat.stage = message
                if seat.job is not None:
                    self.observer.stage(seat.slot, seat.job, message)
            case Done(index, row):
                del seat.left[index]
                assert seat.environment is not None
                seat.environment |= {"ceilings": row.environment.get("ceilings")}
                self.ledger.keep(row)
            case Finished(healthy):
                if seat.left:  # another's fault ended it: in a fresh process
                    assert seat.job is not None
                    rest = Job(tuple(seat.left.values()), seat.job.match)
                    self.queue.appendleft(rest)
                seat.job, seat.left = None, {}
                if not healthy:
                    self._bury(seat)

    def _greet(self, seat: Seat, environment: dict[str, Any]) -> None:
        if self.seats[0].environment is not None:
            check_alike(self.seats[0].environment, environment)
        seat.environment, seat.greeted, seat.deaths = environment, True, 0
        if seat.job is not None:
            self._give(seat)

    def _give_up(self, seat: Seat, reason: str) -> None:
        """Go on without a place where no worker starts; raises RunError if it is the last."""
        others = [other for other in self.seats if other is not seat]
        if not others:
            raise RunError(f"workers do not start: {reason}")
        if others[0].process is None and not any(other.environment for other in others):
            self._start(others[0])
        if seat.job is not None:
            self.queue.appendleft(seat.job)
        self.seats = others
        place = " ".join(f"{name}={value}" for name, value in seat.slot.variables.items())
        self.outcome.lost.append(f"{place or seat.slot.device}: {reason}")

    def _bury(self, seat: Seat) -> None:
        assert seat.process is not None
        seat.process.kill()
        seat.process = seat.repeat = None
        seat.greeted = False

    def _lost(self, seat: Seat, status: Status, reason: str) -> None:
        """Write the row of the entry that ended a worker; put the others back."""
        greeted = seat.greeted
        self._bury(seat)
        if not greeted:
            seat.deaths += 1
            if seat.deaths >= 2:
                self._give_up(seat, reason)
                return
            if seat.job is None:
                self._start(seat)
            else:
                self.queue.appendleft(seat.job)
                seat.job = None
            return
        job, left = seat.job, seat.left
        assert job is not None
        guilty = seat.stage.entry
        if guilty is None and len(left) == 1:
            (guilty,) = left
        if guilty is not None and guilty in left:
            entry = left.pop(guilty)
            row = blank_row(entry, self.settings, seat.environment or {}, job.match)
            what = f"{reason}; during: {seat.stage.what}"
            self.ledger.keep(replace(row, status=status, reason=what))
            rest = [Job(tuple(left.values()), job.match)] if left else []
        else:  # each by itself, in turns with nobody: no part of the match
            rest = [Job((entry,)) for entry in left.values()]
        self.queue.extendleft(reversed(rest))
        seat.job, seat.left = None, {}
