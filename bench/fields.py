"""A tuning, read from its rows: the candidates of each problem, what became of them, who won.

A field is one (op, backend, problem) with its candidates. A candidate has up to three kinds of
rows: compiled without a GPU, gated and raced, and confirmed in fresh processes. What is decided
follows from the rows alone, so a recorded tuning is decided again anywhere.

A candidate that is not right in any of its rows cannot win; a row that found it wrong counts for
good, also after a later one found it right, and with any seed. The others are compared with the
fastest by their confirmed times, paired turn by turn within each process; the scatter between
processes is pooled over all fields (`estimate.py`). Whoever is not slower by EQUAL beyond doubt
ties. If the default ties it wins; else, of the ties that are faster than it beyond doubt, the one
that takes the least shared memory, spills and registers; else the first in the order of the space.
"""

import json
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ..kernels.toolchain import made_with
from . import estimate
from .estimate import Estimate, Noise, Point
from .hardware import identity
from .race import EQUAL, UNDECIDED
from .records import TIMED, Row, Samples, Status, date_of, machine, worker

CONFIDENCE = 0.99
REGISTERS = 65536  # of a block, on every GPU since 2014
KNOB = re.compile(r"(?<!\S)([^\s=]+)=([+-]?\d+)(?!\S)")  # in the name of a candidate
# What became of a candidate, in the words of the T4 format for tuning results.
Outcome = Literal["correct", "correctness", "constraints", "compile", "runtime", "timeout", "left"]
OUTCOMES: dict[Status, Outcome] = {
    "ok": "correct",
    "inaccurate": "correct",
    "wrong": "correctness",
    "skipped": "constraints",
    "compile-failed": "compile",
    "run-failed": "runtime",
    "timeout": "timeout",
    "throttled": "left",
}


@dataclass(slots=True)
class Candidate:
    """One config of a field with its rows."""

    config: dict[str, Any]
    index: int  # in the order of the space; 0 is the default
    names: tuple[str, ...]
    limits: dict[str, Any] = field(default_factory=dict)  # of the device: its environment
    compiled: Row | None = None
    raced: Row | None = None
    confirmed: list[Row] = field(default_factory=list)  # one for each process
    caught: Row | None = None  # a row that found it wrong, whatever came after it

    def add(self, row: Row) -> None:
        """Take a row; it replaces one of the same kind and process."""
        if row.kind == "resources":
            self.compiled = row
        elif row.kind == "tune":
            self.raced = row
        else:
            others = [one for one in self.confirmed if one.repeat != row.repeat]
            self.confirmed = [*others, row]

    @property
    def rows(self) -> list[Row]:
        """Every row, in the order of their making."""
        return [row for row in (self.compiled, self.raced, *self.confirmed) if row is not None]

    @property
    def knobs(self) -> dict[str, set[int]]:
        """The numbers in its names, by what they are of; several if two rules come to this."""
        found: dict[str, set[int]] = {}
        for name in self.names:
            for knob, value in KNOB.findall(name):
                found.setdefault(knob, set()).add(int(value))
        return found

    @property
    def failure(self) -> Row | None:
        """The first row that says that it cannot win."""
        if self.compiled is not None and self.compiled.status == "compile-failed":
            return self.compiled
        later = [row for row in (self.caught, self.raced, *self.confirmed) if row is not None]
        return next((row for row in later if row.status not in TIMED), None)

    @property
    def outcome(self) -> Outcome:
        """What became of it; `left` if it was never run."""
        if self.limited:
            return "constraints"
        if self.failure is not None:
            return OUTCOMES[self.failure.status]
        return "left" if self.raced is None else "correct"

    @property
    def reason(self) -> str:
        """Why it is out of the race; empty for a winner."""
        if self.limited:
            return self.limited
        if self.failure is not None:
            return self.failure.reason
        return "not run" if self.raced is None else self.raced.reason

    @property
    def limited(self) -> str:
        """The limit of the device that a kernel exceeds; empty if it keeps them."""
        if self.compiled is None:
            return ""
        return beyond(self.compiled.resources, self.limits)

    @property
    def cost(self) -> tuple[int, ...]:
        """What it takes of the GPU, to choose the least among equals."""
        kernels = self._resources
        parts = ("shared", "spills", "registers")
        most = (max((kernel[part] for kernel in kernels), default=0) for part in parts)
        return (*most, self.index)

    @property
    def _resources(self) -> list[dict[str, Any]]:
        return next((row.resources for row in self.rows if row.resources), [])

    def row(self, repeat: int | None = None) -> Row | None:
        """Its row of the race, or of one confirming process."""
        if repeat is None:
            return self.raced
        return next((row for row in self.confirmed if row.repeat == repeat), None)

    def samples(self, repeat: int | None = None) -> Samples | None:
        """Times by which it is judged: of the race, or of one confirming process."""
        row = self.row(repeat)
        return None if row is None or row.times is None else row.times.cold or row.times.warm

    @property
    def race(self) -> Samples | None:
        """Times of its race; None for one that is not right: that has no time."""
        return self.samples() if self.outcome == "correct" else None

    def beside(self, other: "Candidate", repeat: int | None = None) -> bool:
        """Whether both were timed in the same turns, of the race or of one confirming process."""
        mine, theirs = self.row(repeat), other.row(repeat)
        if mine is None or theirs is None or mine.match != theirs.match:
            return False
        return worker(mine) == worker(theirs)  # a match that was timed again has rows of two

    def complete(self, processes: Sequence[int]) -> bool:
        """Whether there are confirming processes, and it has times of each."""
        return bool(processes) and all(self.samples(repeat) for repeat in processes)


def beyond(resources: Sequence[dict[str, Any]], limits: dict[str, Any]) -> str:
    """Which limit of a device some kernels exceed, in words; empty for none."""
    shared = limits.get("shared_per_block")
    for kernel in resources:
        if shared is not None and kernel["shared"] > shared:
            return (
                f"{kernel['kernel']} takes {kernel['shared']} bytes of shared memory, the GPU "
                f"allows a block {shared}"
            )
        if kernel["registers"] * kernel["threads"] > REGISTERS:
            return (
                f"{kernel['kernel']} takes {kernel['registers']} registers in each of "
                f"{kernel['threads']} threads, a block has {REGISTERS}"
            )
    return ""


@dataclass(frozen=True, slots=True)
class Margin:
    """Time over the default's, with the ends of its interval."""

    ratio: float
    low: float
    high: float


@dataclass(slots=True)
class Field:
    """The candidates for one problem, in the order of the space."""

    op: str
    backend: str
    problem: dict[str, Any]
    candidates: list[Candidate]
    superseded: int = 0  # of another kernel, seed or software, which do not count

    @property
    def default(self) -> Candidate | None:
        """The hand-picked config; None if it has no row at all."""
        return next((one for one in self.candidates if one.index == 0), None)

    @property
    def environment(self) -> dict[str, Any]:
        """Of the race, or of what there is."""
        rows = [row for one in self.candidates for row in reversed(one.rows)]
        raced = [row for row in rows if row.kind != "resources"]
        return (raced or rows)[0].environment

    @property
    def machine(self) -> tuple[str, str]:
        """What keeps the time, `cuda` or `cpu`, and the name of the GPU or processor; none where
        nothing is raced yet."""
        if all(row.kind == "resources" for one in self.candidates for row in one.rows):
            return "cuda", ""
        known = self.environment
        device = "cpu" if known.get("device") == "cpu" else "cuda"
        return device, str(known.get("gpu") or f"CPU ({known.get('cpu')})")

    @property
    def processes(self) -> list[int]:
        """The confirming processes, by their repeat."""
        return sorted({row.repeat for one in self.candidates for row in one.confirmed})

    @property
    def counts(self) -> dict[str, int]:
        """Candidates by outcome."""
        outcomes = [one.outcome for one in self.candidates]
        return {name: outcomes.count(name) for name in dict.fromkeys(outcomes)}

    @property
    def finalists(self) -> list[Candidate]:
        """Who is to be confirmed: all whom the race did not send away, and the default."""
        timed = [one for one in self.candidates if one.race]
        return [one for one in timed if one.index == 0 or not one.reason]

    @property
    def unfinished(self) -> list[Candidate]:
        """The finalists that lack a process of the confirmation."""
        here = self.processes
        return [one for one in self.finalists if not one.complete(here)]

    def confirmed(self) -> list[Candidate]:
        """Who is right in every row and has times of every confirming process."""
        here = self.processes
        return [one for one in self.candidates if one.outcome == "correct" and one.complete(here)]


@dataclass(frozen=True)
class Decision:
    """What a field comes to."""

    field: Field
    noise: Noise

    @cached_property
    def best(self) -> Candidate | None:
        """The fastest that was confirmed."""
        return min(self.field.confirmed(), key=self.us, default=None)

    @cached_property
    def ties(self) -> list[Candidate]:
        """Who cannot be told apart from the fastest, itself included."""
        if self.best is None:
            return []
        return [one for one in self.field.confirmed() if not self._slower(one, self.best)]

    @cached_property
    def undecided(self) -> list[Candidate]:
        """Who left the race without being slower, because there were too many."""
        return [one for one in self.field.candidates if one.reason == UNDECIDED]

    @cached_property
    def winner(self) -> Candidate | None:
        """The default if it ties, else the tie that costs least of those that are faster than the
        default; None if nobody was right, the default was not run, or somebody is not confirmed."""
        if self.field.unfinished or not self._default_ran:
            return None
        default = next((one for one in self.ties if one.index == 0), None)
        faster = [one for one in self.ties if self._gains(one)]
        return default or min(faster, key=lambda one: one.cost, default=None)

    @property
    def why_none(self) -> str:
        """Why there is no winner."""
        if self.field.unfinished:
            return f"{len(self.field.unfinished)} finalists are not confirmed yet: tune it again"
        if not self._default_ran:
            return "the default was not run: tune it again"
        if "left" in self.field.counts:
            return "not every candidate was run: tune it again"
        if "correct" in self.field.counts:
            return "no candidate that is right has a time"
        return "no candidate is right"

    @cached_property
    def margin(self) -> Margin | None:
        """The winner's time over the default's; None if the default was not confirmed."""
        return None if self.winner is None else self.over_default(self.winner)

    def over_default(self, one: Candidate) -> Margin | None:
        """A confirmed candidate's time over the default's."""
        default = self.field.default
        if default is None or default not in self.field.confirmed():
            return None
        if one is default:
            return Margin(1.0, 1.0, 1.0)
        found = self._ratio(one, default)
        ratio = statistics.fmean(point.log_us for point in _points(self.field, one, default))
        return Margin(math.exp(ratio), *found.interval(CONFIDENCE))

    def us(self, one: Candidate) -> float:
        """The time of a confirmed candidate: geometric mean of the medians of its processes."""
        samples = [one.samples(repeat) for repeat in self.field.processes]
        return statistics.geometric_mean(each.median for each in samples if each)

    def edges(self, one: Candidate) -> list[str]:
        """Numbers in its names that are the lowest or highest tried, of three or more, in words.

        A name has what was varied (`fill=2`); the config, what follows from it at this shape. What
        a rule within the space comes to as well is no edge (`fill=4`, where more than two blocks
        are not to be had). None and one are none either: what is counted ends there by itself.
        """
        tried: dict[str, set[int]] = {}
        for each in self.field.candidates:
            for knob, values in each.knobs.items():
                tried.setdefault(knob, set()).update(values)
        found = []
        for knob, values in one.knobs.items():
            ends = {min(tried[knob]): "lowest", max(tried[knob]): "highest"}
            if min(tried[knob]) in (0, 1):
                del ends[min(tried[knob])]
            if len(tried[knob]) >= 3 and values <= ends.keys():
                found += [f"{knob} = {end} is the {ends[end]} tried" for end in sorted(values)]
        return found

    @property
    def _default_ran(self) -> bool:
        default = self.field.default
        return default is not None and default.outcome != "left"

    def _gains(self, one: Candidate) -> bool:
        """Whether it is faster than the default beyond doubt, or there is no default to beat."""
        margin = self.over_default(one)
        return margin is None or margin.high < 1

    def _slower(self, one: Candidate, best: Candidate) -> bool:
        if one is best:
            return False
        found = self._ratio(one, best)
        return found.interval(CONFIDENCE)[0] > 1 and found.log >= math.log1p(EQUAL)

    def _ratio(self, one: Candidate, other: Candidate) -> Estimate:
        return estimate.estimate(_points(self.field, one, other), self.noise)


def _points(found: Field, one: Candidate, other: Candidate) -> list[Point]:
    """The ratios of two candidates, one for each confirming process that has both."""
    points = []
    for repeat in found.processes:
        a, b = one.samples(repeat), other.samples(repeat)
        if a and b:
            ratio = estimate.paired if one.beside(other, repeat) else estimate.apart
            points.append(ratio(a, b))
    return points


def decide(fields: Sequence[Field]) -> list[Decision]:
    """What each field comes to; the scatter between processes is that of all on its machine."""
    sides: dict[tuple[str, str], list[list[Point]]] = {}
    for found in fields:
        known = sides.setdefault(found.machine, [])
        confirmed = found.confirmed()
        known += [_points(found, one, confirmed[0]) for one in confirmed[1:]]
    noise = {machine: estimate.pool(known, machine[0]) for machine, known in sides.items()}
    return [Decision(found, noise[found.machine]) for found in fields]


def read(rows: Iterable[Row], device: dict[str, Any] | None = None) -> list[Field]:
    """The fields of some rows, one for each GPU, in the order of their first; of a key, and of what
    a candidate has of one kind and process, the row made last counts.

    Of a field's rows those count that were made as the latest one: with the same kernel, compilers,
    driver, Python, torch and seed. device: the environment whose limits count; by default that of
    the races.
    """
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.place is not None:
            name = (row.op, row.backend, json.dumps(row.problem, sort_keys=True))
            found.setdefault(name, []).append(row)
    parts = [part for some in found.values() for part in _by_gpu(_counting(some))]
    return [_field(part, device) for part in parts if part]


def _counting(rows: Sequence[Row]) -> list[Row]:
    """In the order of their making, the last row of each key and every one that found it wrong."""
    ordered = sorted(rows, key=lambda row: date_of(row.environment))
    last = {row.key: row for row in ordered}
    return [
        row
        for row in ordered
        if row.status == "wrong"
        or (row is last[row.key] and row.status != "throttled")  # that one is still to be run
    ]


def _by_gpu(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each GPU, each with what was compiled, for which no GPU was asked."""
    measured: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind != "resources":
            measured.setdefault(machine(row), []).append(row)
    compiled = [row for row in rows if row.kind == "resources"]
    return [compiled + part for part in measured.values()] or [compiled]


def _field(rows: Sequence[Row], device: dict[str, Any] | None) -> Field:
    """One field from the rows of one problem, backend and GPU, in the order of their making."""
    code = _code(_measured(rows)[-1])
    alike = [row for row in rows if _code(row) == code]
    right = [row for row in _measured(alike) if row.status != "wrong"]
    made = _made((right or _measured(alike))[-1])  # what was wrong counts under any seed
    kept = [row for row in alike if row.kind == "resources" or _made(row) == made]
    limits = device or next((row.environment for row in kept if row.kind == "tune"), {})
    candidates: dict[str, Candidate] = {}
    for row in kept:
        config = _config(row)
        if config not in candidates:
            assert row.place is not None
            names = tuple(row.place["names"])
            candidates[config] = Candidate(row.config, row.place["index"], names, limits)
        candidates[config].add(row)
    for row in alike:
        if row.status == "wrong" and (one := candidates.get(_config(row))) is not None:
            one.caught = row
    ordered = sorted(candidates.values(), key=lambda one: one.index)
    first = kept[0]
    return Field(first.op, first.backend, first.problem, ordered, len(rows) - len(kept))


def _config(row: Row) -> str:
    return json.dumps(row.config, sort_keys=True)


def _measured(rows: Sequence[Row]) -> Sequence[Row]:
    """Those that ran on the device, or all if none did."""
    return [row for row in rows if row.kind != "resources"] or rows


def _code(row: Row) -> dict[str, str | None]:
    """What the machine code of a row's kernel depends on."""
    return made_with(row.backend, row.environment, row.source)


def _made(row: Row) -> tuple[Any, ...]:
    """What rows of one tuning have in common."""
    made = identity(row.environment, row.op, row.backend)
    return row.seed, json.dumps(made, sort_keys=True)
