"""OLD against NEW: for each shape one of four verdicts, or that it is wrong or was not measured.

The effect is NEW / OLD of the medians. Its interval covers what differs between processes
(`estimate.py`), all shapes of the comparison at once (Bonferroni), and the clocks: a kernel's time
depends on the SM clock somewhere between not at all and in proportion, so where the clocks of the
two sides differ, the interval reaches from the ratio of times to the ratio of cycles.

    slower        the interval lies above 1, and the effect is at least the threshold
    faster        the same below 1
    same          the interval lies within the threshold
    cannot tell   everything else: the interval is too wide
    not measured  OLD worked, NEW does not, or has no time although OLD has one
    wrong         NEW's result is outside its bound
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self, get_args

from . import estimate
from .estimate import Noise
from .records import TIMED, Row
from .sides import Kind, Timed, distinct, grouped, namer, timed

Case = Literal["same", "faster", "cannot tell", "slower", "not measured", "wrong"]
CASES: tuple[Case, ...] = get_args(Case)  # from the best to the worst
EXIT: dict[Case, int] = {
    "same": 0,
    "faster": 10,
    "cannot tell": 11,
    "slower": 12,
    "not measured": 13,
    "wrong": 14,
}
PASSING: tuple[Case, ...] = ("same", "faster", "cannot tell")
NOTHING = 3  # exit code: no shape is in both
# What belongs to a run and may differ between sides: said, not judged.
TOLD = ("gpu", "cpu", "driver", "cuda", "ptxas", "nvcc", "python", "packages", "commit", "dirty")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a comparison is to look at and to take for a difference."""

    threshold: float = 0.02  # the smallest difference that matters, as a share
    confidence: float = 0.95  # of all intervals of the comparison together
    kind: Kind = "device"  # cold where both sides have it, else warm
    noise: float | None = None  # between processes; None: from repeats, else assumed
    by_config: bool = False  # else the fastest config of a backend stands for it


@dataclass(frozen=True, slots=True)
class Effect:
    """NEW over OLD of one shape."""

    ratio: float
    low: float
    high: float
    kind: str  # of time: cold, warm or host
    old_us: float
    new_us: float
    old_mhz: float | None  # SM clock
    new_mhz: float | None
    processes: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Line:
    """One shape of one backend."""

    case: Case
    op: str
    backend: str
    problem: dict[str, Any]
    config: str  # empty unless compared by config
    machine: str  # empty unless the sides have several and one in common
    effect: Effect | None
    reason: str  # of a case that is no verdict, and what else there is to know


@dataclass(frozen=True, slots=True)
class Mean:
    """Geometric mean of the effects of a backend and op, over the shapes with a verdict."""

    op: str
    backend: str
    ratio: float
    shapes: int
    of: int  # shapes in the comparison


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that is to be said about OLD and NEW."""

    asked: Asked
    noise: dict[str, Noise]  # by device
    lines: list[Line]
    means: list[Mean]
    added: int  # shapes that NEW alone has measured
    untimed: int  # shapes that are right on both sides and have a time on none
    differing: dict[str, tuple[str, str]]  # what differs between the environments
    copies: int  # rows that another file of their side has as they are: not counted again

    @property
    def counts(self) -> dict[Case, int]:
        """Shapes by case, the worst first; those without any are left out."""
        found = {case: sum(line.case == case for line in self.lines) for case in reversed(CASES)}
        return {case: count for case, count in found.items() if count}

    def exit_code(self, passing: Iterable[Case] = PASSING) -> int:
        """The code of the worst case that does not pass, 0 if all pass, NOTHING without a line."""
        if not self.lines:
            return NOTHING
        allowed = set(passing)
        return next((EXIT[case] for case in self.counts if case not in allowed), 0)


@dataclass(frozen=True, slots=True)
class Duel:
    """The rows of one thing on both sides, and the times of them that are to be compared."""

    machine: str
    old: list[Row]
    new: list[Row]
    times: tuple[Timed, Timed] | None
    untimed: str = ""  # why there are times and yet none to compare

    @classmethod
    def of(cls, machine: str, old: list[Row], new: list[Row], kind: Kind) -> Self:
        """The first kind of time that both sides have from one kind of clock."""
        before, after = timed(old, kind), timed(new, kind)
        for name in before:
            if name not in after:
                continue
            clocks = before[name].device, after[name].device
            if clocks[0] != clocks[1]:
                return cls(
                    machine, old, new, None, f"OLD is a {clocks[0]} time, NEW a {clocks[1]} time"
                )
            return cls(machine, old, new, (before[name], after[name]))
        return cls(machine, old, new, None)


def compare(
    old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]], asked: Asked | None = None
) -> Comparison:
    """Compare two sides; each is one or more runs, whose rows of one thing are its repeats."""
    asked = asked or Asked()
    (old, copies), (new, others) = distinct(old), distinct(new)
    name = namer(old, new, asked.by_config)
    sides = grouped(old, name), grouped(new, name)
    duels = [
        Duel.of(key[-1], sides[0].get(key, []), sides[1].get(key, []), asked.kind)
        for key in dict.fromkeys([*sides[0], *sides[1]])
    ]
    noise = _noise(duels, asked)
    judged = sum(duel.times is not None for duel in duels)
    lines, added, untimed = [], 0, 0
    for duel in duels:
        worked = any(row.status in TIMED for row in duel.old)
        if not worked and any(row.status in TIMED for row in duel.new):
            added += 1
        if not worked and not any(row.status == "wrong" for row in duel.new):
            continue
        line = _line(duel, noise, asked, max(judged, 1))
        untimed += line is None
        lines += [line] if line else []
    return Comparison(
        asked=asked,
        noise=noise,
        lines=lines,
        means=_means(lines),
        added=added,
        untimed=untimed,
        differing=_differing(old, new),
        copies=copies + others,
    )


def _noise(duels: Iterable[Duel], asked: Asked) -> dict[str, Noise]:
    """The noise between processes, by device."""
    sides = [(side.device, side.points) for duel in duels for side in duel.times or ()]
    if asked.noise is not None:
        return {device: Noise(asked.noise, math.inf, measured=False) for device, _ in sides}
    return estimate.pools(sides)


def _line(duel: Duel, noise: dict[str, Noise], asked: Asked, judged: int) -> Line | None:
    """The case of one thing; None if it is right on both sides and timed on none."""
    new, last = duel.new, (duel.new or duel.old)[-1]
    config = text_of(last.config) if asked.by_config else ""
    line = partial(
        Line,
        op=last.op,
        backend=last.backend,
        problem=last.problem,
        config=config,
        machine=duel.machine,
    )
    for row in new:
        if row.status == "wrong":
            return line(case="wrong", effect=None, reason=row.reason)
    if not new:
        return line(case="not measured", effect=None, reason="no row in NEW")
    failed = [row for row in new if row.status not in TIMED]
    if failed:
        share = f"{len(failed)} of {len(new)} processes: " if len(new) > 1 else ""
        reason = f"{share}{failed[0].status}: {failed[0].reason}"
        return line(case="not measured", effect=None, reason=reason)
    if duel.times is None:
        if not timed(duel.old, asked.kind):
            return None
        reason = duel.untimed or new[-1].reason or f"no {asked.kind} time in NEW"
        return line(case="not measured", effect=None, reason=reason)
    effect = _effect(*duel.times, noise, asked, judged)
    notes = [f"{row.status}: {row.reason}" for row in new[-1:] if row.status != "ok"]
    configs = [text_of(side.config) for side in duel.times]
    if configs[0] != configs[1]:
        notes.append(f"config {configs[0] or 'none'} -> {configs[1] or 'none'}")
    case = verdict(effect, asked.threshold)
    return line(case=case, effect=effect, reason="; ".join(notes))


def _effect(
    before: Timed, after: Timed, noise: dict[str, Noise], asked: Asked, judged: int
) -> Effect:
    """The ratio with its interval, of one of `judged` things that share the confidence."""
    scatter = noise[after.device]
    ratio = estimate.ratio(before.points, after.points, scatter)
    old, new = (estimate.estimate(side.points, scatter) for side in (before, after))
    low, high = ratio.interval(1 - (1 - asked.confidence) / judged)
    if before.clock_mhz and after.clock_mhz:
        cycles = after.clock_mhz / before.clock_mhz  # ratio of cycles = ratio of times x this
        low, high = min(low, low * cycles), max(high, high * cycles)
    return Effect(
        ratio=math.exp(ratio.log),
        low=low,
        high=high,
        kind=after.kind,
        old_us=math.exp(old.log),
        new_us=math.exp(new.log),
        old_mhz=before.clock_mhz,
        new_mhz=after.clock_mhz,
        processes=(len(before.points), len(after.points)),
    )


def verdict(effect: Effect, threshold: float) -> Case:
    """What an interval says; `threshold` is a share: 0.02 lets 1 / 1.02 to 1.02 count as same."""
    limit = 1 + threshold
    if effect.low > 1 and effect.ratio >= limit:
        return "slower"
    if effect.high < 1 and effect.ratio <= 1 / limit:
        return "faster"
    if 1 / limit <= effect.low and effect.high <= limit:
        return "same"
    return "cannot tell"


def _means(lines: Sequence[Line]) -> list[Mean]:
    found = []
    for op, backend in dict.fromkeys((line.op, line.backend) for line in lines):
        mine = [line for line in lines if (line.op, line.backend) == (op, backend)]
        logs = [math.log(line.effect.ratio) for line in mine if line.effect]
        if logs:
            found.append(Mean(op, backend, math.exp(statistics.fmean(logs)), len(logs), len(mine)))
    return found


def _differing(
    old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]]
) -> dict[str, tuple[str, str]]:
    """What the environments of the two sides do not share, packages one by one."""
    found = {}
    values = [_environments(side) for side in (old, new)]
    for name in sorted({*values[0], *values[1]}):
        before, after = (", ".join(sorted(side.get(name, {"none"}))) for side in values)
        if before != after:
            found[name] = (before, after)
    return found


def _environments(side: Sequence[Sequence[Row]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in (row for run in side for row in run):
        told = {name: row.environment.get(name) for name in TOLD}
        packages = told.pop("packages") or {}
        for name, value in {**told, **packages}.items():
            if value is not None:
                found.setdefault(name, set()).add(str(value))
    return found


def text_of(config: dict[str, Any]) -> str:
    """A config on one line."""
    return " ".join(f"{name}={value}" for name, value in config.items())
