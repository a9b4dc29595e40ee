"""One worker process: builds inputs from the seed, gates, times, gates again, answers with rows.

It may be killed at any time; the parent knows from the last `Stage` whom to blame. Everything that
a kernel can do wrong short of ending the process becomes a row here.
"""

import ctypes
import faulthandler
import json
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from ..kernels import registry
from ..kernels.bound import Bound
from ..kernels.family import Call, HardCase, Problem, family, make_call
from ..kernels.registry import Config, Implementation, config_dict
from . import ceilings, peers, plugins
from .buffers import differing
from .gate import Gate, Verdict
from .gpu import Gpu
from .graphs import GraphBench, NotCaptured
from .hardware import environment
from .jobs import Done, Entry, Expect, Finished, Hello, Job, Settings, Stage, Start
from .race import Race
from .records import Times
from .rows import NotRun, blank_row, explain
from .sampler import Throttled
from .timing import CpuBench, host_time

PR_SET_PDEATHSIG = 1


def main(descriptor: int) -> None:
    """Serve jobs that come over a connection until it closes."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphan outlives its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is the parent's to handle
    faulthandler.enable()
    faulthandler.register(
        signal.SIGUSR1, all_threads=False
    )  # a hung worker is asked where it hangs
    with Connection(descriptor) as parent:
        start: Start = parent.recv()
        worker = Worker(start, parent)
        parent.send(Hello(worker.environment))
        while True:
            try:
                asked: Job | Expect = parent.recv()
            except EOFError:
                return
            if isinstance(asked, Expect):
                for op, backend in asked.backends:
                    registry.unavailable(op, backend)
                continue
            healthy = worker.work(asked)
            parent.send(Finished(healthy))
            if not healthy:
                return


class DeviceLost(BaseException):
    """The device does not answer any more; no handler of a kernel's errors may catch it."""


@dataclass(frozen=True, slots=True)
class Solver:
    """One implementation and config, ready to run."""

    index: int  # of its entry
    problem: Problem
    implementation: Implementation
    config: Config

    def __call__(self, call: Call) -> None:
        self.implementation.run(call, self.config)

    def bind(self, call: Call) -> Bound:
        """Prepare a call for launches that are timed."""
        return self.implementation.bind(call, self.config)

    @property
    def name(self) -> str:
        """Backend and config, as a cache key."""
        return f"{self.implementation.backend} {json.dumps(config_dict(self.config), default=str)}"


@dataclass(frozen=True, slots=True)
class Passed:
    """What is known of a solver whose result is right."""

    solver: Solver
    pristine: Call
    verdict: Verdict
    compile_s: float


class Worker:
    """The state of a worker between jobs."""

    def __init__(self, start: Start, parent: Connection) -> None:
        self.settings: Settings = start.settings
        self.device = torch.device(start.device)
        self.parent = parent
        self.gpu = Gpu(self.device) if self.device.type == "cuda" else None
        peers.register()
        peers.rehearsing = self.settings.kind == "rehearse"
        plugins.load(self.settings.plugins)
        self.environment = environment(self.device, interpreted=self.settings.interpret)
        self.environment |= {"command": self.settings.command, "ceilings": start.ceilings}
        self._match = ""  # of the job at work
        self._hard_gates: dict[HardCase, Gate] = {}
        self._hard_verdicts: dict[tuple[str, HardCase], str | None] = {}

    def work(self, job: Job) -> bool:
        """Send one row per entry; returns whether this process can be trusted with another job."""
        left = dict(enumerate(job.entries))
        self._match = job.match
        try:
            self._work(left)
        except DeviceLost:
            return False
        except Exception as error:
            if len(left) > 1 and not isinstance(error, Throttled):
                raise  # ends this process: the parent runs each entry left by itself
            for index in list(left):
                self._fail(left, index, error)
        return self._healthy()

    def _work(self, left: dict[int, Entry]) -> None:
        solvers = []
        for index, entry in list(left.items()):
            self._tell(index, "looking up")
            try:
                solvers.append(self._solver(index, entry))
            except Exception as error:
                self._fail(left, index, error)
        if self.settings.kind == "resources":
            for solver in solvers:
                self._tell(solver.index, "compile")
                try:
                    self._compiled(left, solver)
                except Exception as error:
                    self._fail(left, solver.index, error)
            return
        if self.settings.kind == "rehearse":
            for solver in solvers:
                self._rehearse(left, solver)
            return
        passed = []
        for problem in dict.fromkeys(solver.problem for solver in solvers):
            passed += self._gate_all(left, problem, [s for s in solvers if s.problem == problem])
        if self.settings.kind == "check":
            for one in passed:
                self._done(left, one)
            return
        self._time(left, passed)

    def _gate_all(
        self, left: dict[int, Entry], problem: Problem, solvers: list[Solver]
    ) -> list[Passed]:
        """Gate those who solve one problem; returns those who do it right."""
        self._tell(None, f"building inputs of {problem.op} and their float64 truth")
        passed: list[Passed] = []
        try:
            gate = self._gate(problem, self.settings.seed)
        except Exception as error:
            for solver in solvers:
                self._fail(left, solver.index, error)
            return passed
        for solver in solvers:
            self._tell(solver.index, "gate")
            try:
                passed.append(self._gated(solver, gate))
            except Exception as error:
                self._fail(left, solver.index, error)
        return passed

    def _gate(self, problem: Problem, seed: int) -> Gate:
        return Gate(make_call(problem, seed, self.device), seed)

    def _compiled(self, left: dict[int, Entry], solver: Solver) -> None:
        """Send a row with what a config takes on sm_90a."""
        compiled = solver.implementation.resources
        if compiled is None:
            raise NotRun("skipped", "it compiles nothing")
        begin = time.perf_counter()
        found = [asdict(kernel) for kernel in compiled(solver.problem, solver.config)]
        row = blank_row(left[solver.index], self.settings, self.environment, self._match)
        row = replace(
            row,
            status="skipped",
            reason="compiled for sm_90a, not run",
            config=config_dict(solver.config),
            compile_s=time.perf_counter() - begin,
            resources=found,
        )
        self.parent.send(Done(solver.index, row))
        del left[solver.index]

    def _rehearse(self, left: dict[int, Entry], solver: Solver) -> None:
        """Run a solver once, for what it compiles; its row says no more than that."""
        self._tell(solver.index, "rehearse")
        try:
            self._run(solver, make_call(solver.problem, self.settings.seed, self.device))
            raise NotRun("skipped", "run once, not judged")
        except Exception as error:
            self._fail(left, solver.index, error)

    def _time(self, left: dict[int, Entry], passed: list[Passed]) -> None:
        """Time what passed, interleaved, and gate it again on inputs of another seed."""
        gpu = self.gpu
        if gpu is not None and self.environment.get("ceilings") is None:
            self._tell(None, "measuring ceilings")
            self.environment["ceilings"] = ceilings.measure(gpu)
        bench = GraphBench(gpu) if gpu else CpuBench()
        timed = []
        for one in passed:
            solver, pristine = one.solver, one.pristine
            if self._interpreted(solver):
                self._done(left, one, reason="not timed: it ran through its interpreter")
                continue
            self._tell(solver.index, "capture in a graph")
            try:
                deterministic = solver.implementation.deterministic
                measured = self.settings.kind != "tune"
                bench.add(pristine, solver.bind, deterministic=deterministic, measured=measured)
                timed.append(one)
            except NotCaptured as error:
                host = host_time(solver.bind(pristine.clone()).launch, self._wait)
                times = Times("cuda", None, None, host)
                self._done(left, one, times, reason=f"no device time: {error}")
            except Exception as error:
                self._fail(left, solver.index, error)
        if not timed:
            return
        self._tell(timed[0].solver.index if len(timed) == 1 else None, "timing")
        if self.settings.kind == "tune":
            self._race(left, bench, timed)
            return
        all_times = bench.measure(self.settings.budget_s)
        fresh: dict[Problem, Gate] = {}
        for position, (one, times) in enumerate(zip(timed, all_times, strict=True)):
            problem = one.solver.problem
            if problem not in fresh:
                self._tell(None, f"building other inputs of {problem.op} and their float64 truth")
                fresh = {problem: self._gate(problem, self.settings.seed + 1)}  # one at a time
            self._tell(one.solver.index, "gate after timing")
            try:
                self._believe(bench, position, one, times, fresh[problem])
                self._done(left, one, times)
            except Exception as error:
                self._fail(left, one.solver.index, error)

    def _race(
        self, left: dict[int, Entry], bench: GraphBench | CpuBench, timed: Sequence[Passed]
    ) -> None:
        """Race the candidates for one problem, the default in every lap; each is gated again."""
        self._tell(None, "building other inputs and their float64 truth")
        fresh = self._gate(timed[0].solver.problem, self.settings.seed + 1)
        race = Race(
            bench.lap,
            [left[one.solver.index].default for one in timed],
            self.settings.finalists,
        )
        self._tell(None, "racing")
        for out in race.run(self.settings.budget_s):
            one = timed[out.index]
            self._tell(one.solver.index, "gate after timing")
            times = bench.times(out.samples)
            try:
                self._believe(bench, out.index, one, times, fresh)
                self._done(left, one, times, reason=out.reason)
            except Exception as error:
                self._fail(left, one.solver.index, error)
            self._tell(None, "racing")

    def _believe(
        self, bench: GraphBench | CpuBench, position: int, one: Passed, times: Times, fresh: Gate
    ) -> None:
        """Raise unless the timed buffers hold right results and the time is possible."""
        verdict = bench.recheck(position, fresh, rival=one.solver.implementation.rival)
        if verdict.status == "wrong":
            raise NotRun("wrong", f"after timing: {verdict.reason}", verdict.errors)
        if times.device == "cuda":
            nbytes = fresh.pristine.problem.bytes
            reason = ceilings.too_fast(times, nbytes, self.environment["ceilings"])
            if reason is not None:
                raise NotRun("run-failed", reason)

    def _solver(self, index: int, entry: Entry) -> Solver:
        problem = entry.problem
        reason = registry.unavailable(problem.op, entry.backend)
        if reason is None and self.settings.kind != "resources":
            reason = registry.refusal(problem.op, entry.backend, problem, self.device)
        if reason is not None:
            raise NotRun("skipped", reason)
        implementation = registry.get(problem.op, entry.backend)
        implementation.forget()
        if entry.config is None:
            return Solver(
                index, problem, implementation, implementation.chosen(problem, self.device)
            )
        if self.settings.kind == "resources":  # for another device: what is legal there is legal
            kind = type(implementation.default(problem, self.device))
            return Solver(index, problem, implementation, kind(**entry.config))
        for config in implementation.candidates(problem, self.device).values():
            if config_dict(config) == entry.config:
                return Solver(index, problem, implementation, config)
        raise NotRun("skipped", f"config {entry.config} is not legal for this problem here")

    def _gated(self, solver: Solver, gate: Gate) -> Passed:
        """Gate a solver on the problem and on the hard cases; a rival on its own."""
        verdict, seconds = self._judged(solver, gate)
        if verdict.status == "wrong":
            raise NotRun("wrong", verdict.reason, verdict.errors)
        its = family(solver.problem.op)
        choose = its.rival_cases if solver.implementation.rival else its.hard_cases
        cases = choose(solver.problem)
        for case in cases:
            reason = self._hard(solver, case)
            if reason is not None:
                raise NotRun("wrong", f"hard case ({case}): {reason}")
        return Passed(solver, gate.pristine, verdict, seconds)

    def _hard(self, solver: Solver, case: HardCase) -> str | None:
        """Why a solver fails a hard case, or None; computed once per worker."""
        if (solver.name, case) not in self._hard_verdicts:
            if solver.implementation.supports(case.problem, self.device) is not None:
                reason = None  # refused, so nobody can be misled
            else:
                self._tell(solver.index, f"gate, hard case ({case})")
                if case not in self._hard_gates:
                    call = case.call(self.settings.seed, self.device)
                    self._hard_gates[case] = Gate(call, self.settings.seed)
                verdict, _ = self._judged(solver, self._hard_gates[case])
                reason = verdict.reason if verdict.status == "wrong" else None
            self._hard_verdicts[solver.name, case] = reason
        return self._hard_verdicts[solver.name, case]

    def _judged(self, solver: Solver, gate: Gate) -> tuple[Verdict, float]:
        """Run twice on clean clones; returns the verdict and the seconds of compilation.

        Compilation is the first call's time less the second's: what the DSL still had to do, given
        what lay in its caches.
        """
        rival = solver.implementation.rival
        call = gate.pristine.clone()
        first_s = self._run(solver, call)
        verdict = gate.judge(call, rival=rival)
        if verdict.status == "wrong":
            return verdict, 0.0
        if self._interpreted(solver):  # one operation after the other: it cannot differ
            return verdict, 0.0
        again = gate.pristine.clone()
        second_s = self._run(solver, again)
        if solver.implementation.deterministic:
            differ = differing(call.outputs(), again.outputs())
            if differ:
                reason = f"two runs on the same inputs differ in {', '.join(differ)}"
                verdict = Verdict("wrong", reason, verdict.errors)
        else:
            second = gate.judge(again, rival=rival)
            verdict = second if second.status != "ok" else verdict
        return verdict, max(first_s - second_s, 0.0)

    def _interpreted(self, solver: Solver) -> bool:
        return self.gpu is None and solver.implementation.backend in registry.INTERPRETERS

    def _run(self, solver: Solver, call: Call) -> float:
        """Poison, run and wait; returns the seconds of the run."""
        call.poison()
        self._wait()
        begin = time.perf_counter()
        solver(call)
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _healthy(self) -> bool:
        """Whether the device still answers: after some errors a CUDA context is lost for good."""
        try:
            self._wait()
        except RuntimeError:
            return False
        return True

    def _tell(self, entry: int | None, what: str) -> None:
        self.parent.send(Stage(entry, what))

    def _fail(self, left: dict[int, Entry], index: int, error: Exception) -> None:
        status, reason = explain(error)
        row = blank_row(left[index], self.settings, self.environment, self._match)
        errors = error.errors if isinstance(error, NotRun) else {}
        self.parent.send(Done(index, replace(row, status=status, reason=reason, errors=errors)))
        del left[index]
        if not self._healthy():
            raise DeviceLost  # whatever ran next would fail for this one's fault
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _done(
        self,
        left: dict[int, Entry],
        one: Passed,
        times: Times | None = None,
        reason: str = "",
    ) -> None:
        index = one.solver.index
        entry = left[index]
        row = blank_row(entry, self.settings, self.environment, self._match)
        figures = times is not None and entry.place is None  # a tuning has them beforehand
        resources = self._figures(one.solver) if figures else []
        row = replace(
            row,
            status=one.verdict.status,
            reason="; ".join(filter(None, (one.verdict.reason, reason))),
            config=config_dict(one.solver.config),
            errors=one.verdict.errors,
            compile_s=one.compile_s,
            times=times,
            resources=resources,
        )
        self.parent.send(Done(index, row))
        del left[index]

    def _figures(self, solver: Solver) -> list[dict[str, Any]]:
        """What the compiler says of a timed kernel; nothing if it cannot be asked here."""
        compiled = solver.implementation.resources
        if compiled is None:
            return []
        self._tell(solver.index, "compile for its figures")
        with suppress(Exception):  # a right result and its time stand without them
            return [asdict(kernel) for kernel in compiled(solver.problem, solver.config)]
        return []
