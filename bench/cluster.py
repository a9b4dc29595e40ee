"""The same run over several machines, through Ray: one actor per GPU, each with its own worker.

An actor holds a `Runner` with one seat, so what a kernel does to a worker costs one row, as on one
machine. An actor that is lost with its machine costs no row at first: its job goes to another; a
job that loses a second actor gets rows that say so. The rows are those of any other run.

Every machine needs this package at the same version, and plugins under the same path. Kernels are
not compiled ahead: each worker compiles what it meets.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from .jobs import Job, Settings, Stage
from .ledger import Ledger, Observer, Outcome, RunError, Slot, check_alike, locked
from .records import Row
from .rows import blank_row
from .runner import Runner

POLL_S = 1.0  # between looks at what is done, so that an interrupt is heard
LOSSES = 2  # actors that a job may lose


class Unwatched:
    """Watches nothing: rows are told by the driver."""

    def planned(self, total: int, recorded: int) -> None:
        """Say nothing."""

    def stage(self, slot: Slot, job: Job, stage: Stage) -> None:
        """Say nothing."""

    def row(self, row: Row) -> None:
        """Say nothing."""


def resources() -> dict[str, float]:
    """What the cluster has, by unit."""
    found: dict[str, float] = ray.cluster_resources()
    return found


class Station:
    """The place of one worker, on whatever machine Ray put it."""

    def __init__(self, settings: Settings, device: str, timeout_s: float) -> None:
        """Prepare; Ray has made one GPU visible to this process, and so to its worker."""
        variables = {} if device.startswith("cuda") else {"OMP_NUM_THREADS": "1"}
        slot = Slot(device, variables)
        self.runner = Runner(settings, [slot], None, Unwatched(), timeout_s=timeout_s)

    def open(self) -> dict[str, Any]:
        """Start the worker; returns its environment."""
        return self.runner.open()

    def work(self, job: Job) -> list[Row]:
        """The rows of a job whose entries have their keys."""
        before = len(self.runner.outcome.rows)
        self.runner.queue.append(job)
        self.runner.serve()
        return self.runner.outcome.rows[before:]


class Cluster:
    """One run over the machines of a Ray cluster."""

    def __init__(
        self,
        settings: Settings,
        device: str,
        path: Path | None,
        observer: Observer,
        *,
        address: str = "",
        stations: int | None = None,
        timeout_s: float = 300.0,
        retry: bool = False,
    ) -> None:
        """Connect to a cluster, or start one of this machine where there is no address.

        device: `cuda` or `cpu`. stations: how many workers; by default one for each GPU of the
        cluster, or on CPUs one. The rest as for `Runner`.
        """
        options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(**({"address": address} if address else options), ignore_reinit_error=True)
        self.settings, self.device, self.path = settings, device, path
        self.timeout_s = timeout_s
        self.ledger = Ledger(settings, path, observer, retry=retry)
        unit = "GPU" if device == "cuda" else "CPU"
        there = int(resources().get(unit, 0))
        self.stations = stations or (there if device == "cuda" else 1)
        if not 1 <= self.stations <= there:
            raise RunError(f"the Ray cluster has {there} {unit}s, {max(self.stations, 1)} needed")

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """As `Runner.run`: what is recorded is not done again, an interrupt keeps what is done."""
        with locked(self.path):
            queue = deque(jobs)  # until there is a plan, all
            running: dict[Any, tuple[Any, Job]] = {}
            try:
                idle = self._start()
                queue = self.ledger.plan(jobs, self.environment)
                losses: dict[str, int] = {}
                while queue or running:
                    while queue and idle:
                        actor, job = idle.pop(), queue.popleft()
                        running[actor.work.remote(job)] = actor, job
                    if not running:
                        raise RunError("every worker of the cluster was lost")
                    done, _ = ray.wait(list(running), timeout=POLL_S)
                    for reference in done:
                        actor, job = running.pop(reference)
                        if self._take(reference, job, queue, losses):
                            idle.append(actor)
            except KeyboardInterrupt:
                outcome = self.ledger.outcome
                outcome.interrupted = True
                waiting = [*queue, *(job for _, job in running.values())]
                outcome.left = sum(len(job.entries) for job in waiting)
            finally:
                ray.shutdown()
        return self.ledger.outcome

    def _start(self) -> list[Any]:
        """The actors, greeted; raises RunError if they differ or do not start."""
        make: Any = ray.remote(num_gpus=1) if self.device == "cuda" else ray.remote(num_cpus=1)
        station = make(Station)
        device = "cuda:0" if self.device == "cuda" else "cpu"
        actors = [
            station.remote(self.settings, device, self.timeout_s) for _ in range(self.stations)
        ]
        try:
            environments: list[Any] = ray.get([actor.open.remote() for actor in actors])
        except (RayActorError, RayTaskError) as error:
            raise RunError(f"a worker of the cluster does not start: {error}") from error
        self.environment: dict[str, Any] = environments[0]
        for other in environments[1:]:
            check_alike(self.environment, other)
        return actors

    def _take(self, reference: Any, job: Job, queue: deque[Job], losses: dict[str, int]) -> bool:
        """Keep the rows of a job; returns whether its actor is still there."""
        try:
            for row in ray.get(reference):
                self.ledger.keep(row)
        except (RayActorError, RayTaskError) as error:
            reason = " ".join(str(error).split())[:300]
            self.ledger.outcome.lost.append(reason)
            name = job.entries[0].key
            losses[name] = losses.get(name, 0) + 1
            if losses[name] < LOSSES:
                queue.append(job)
                return False
            for entry in job.entries:
                row = blank_row(entry, self.settings, self.environment, job.match)
                self.ledger.keep(replace(row, reason=f"its machine was lost: {reason}"))
            return False
        return True
