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

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from . import estimate, records
from .estimate import Noise, Point
from .records import TIMED, Row, Samples, Times

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
Kind = Literal["device", "cold", "warm", "host"]
# What belongs to a run and may differ between sides: said, not judged.
TOLD = ("gpu", "cpu", "driver", "cuda", "ptxas", "python", "packages", "commit", "dirty")


class NoRecords(ValueError):
    """There is nothing to compare on one side."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"no records in {path}: name a records.jsonl, or a folder that holds some")


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


def load(path: Path) -> list[list[Row]]:
    """The rows of each record file: one file, or all below a folder; of a key the last row counts.

    Raises NoRecords.
    """
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    runs = [list({row.key: row for row in records.read([f])}.values()) for f in files if f.exists()]
    if not any(runs):
        raise NoRecords(path)
    return runs


Key = tuple[str, str, str, str]  # op, backend, problem, config


def compare(
    old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]], asked: Asked | None = None
) -> Comparison:
    """Compare two sides; each is one or more runs, whose rows of one thing are its repeats."""
    asked = asked or Asked()
    name = namer(old, new, asked)
    sides = _grouped(old, name), _grouped(new, name)
    keys = dict.fromkeys([*sides[0], *sides[1]])
    pairs = {key: (sides[0].get(key, []), sides[1].get(key, [])) for key in keys}
    chosen = {key: _kind(pair, asked.kind) for key, pair in pairs.items()}
    noise = _noise(pairs, chosen, asked)
    judged = sum(kind is not None for kind in chosen.values())
    lines, added, untimed = [], 0, 0
    for key, pair in pairs.items():
        worked = any(row.status in TIMED for row in pair[0])
        if not worked and any(row.status in TIMED for row in pair[1]):
            added += 1
        if not worked and not any(row.status == "wrong" for row in pair[1]):
            continue
        line = _line(pair, chosen[key], noise, asked, max(judged, 1))
        untimed += line is None
        lines += [line] if line else []
    return Comparison(asked, noise, lines, _means(lines), added, untimed, _differing(old, new))


def namer(
    old: Sequence[Sequence[Row]], new: Sequence[Sequence[Row]], asked: Asked
) -> Callable[[Row], Key]:
    """What makes rows of the two sides the same thing.

    A field that the problems of one side alone have, with one value, is newer than the other side:
    it is left out.
    """
    fields: dict[str, list[dict[str, set[str]]]] = {}
    for place, side in enumerate((old, new)):
        for row in (row for run in side for row in run):
            known = fields.setdefault(row.op, [{}, {}])[place]
            for name, value in row.problem.items():
                known.setdefault(name, set()).add(json.dumps(value))
    ignored = {
        op: {
            name
            for mine, other in (both, both[::-1])
            for name in mine.keys() - other.keys()
            if other and len(mine[name]) == 1
        }
        for op, both in fields.items()
    }

    def named(row: Row) -> Key:
        problem = {k: v for k, v in row.problem.items() if k not in ignored[row.op]}
        config = json.dumps(row.config, sort_keys=True) if asked.by_config else ""
        return row.op, row.backend, json.dumps(problem, sort_keys=True), config

    return named


def _grouped(runs: Sequence[Sequence[Row]], name: Callable[[Row], Key]) -> dict[Key, list[Row]]:
    """The rows of each thing, in the order of their first; of several configs the fastest."""
    found: dict[Key, list[Row]] = {}
    for run in runs:
        for row in run:
            found.setdefault(name(row), []).append(row)
    return {key: _fastest(rows) for key, rows in found.items()}


def _fastest(rows: list[Row]) -> list[Row]:
    """The rows of the config with the least median, and those that are wrong."""

    def config(row: Row) -> str:
        return json.dumps(row.config, sort_keys=True)

    timed = sorted((row for row in rows if row.times is not None), key=config)
    groups = [list(group) for _, group in groupby(timed, config)]
    if len(groups) < 2:
        return rows
    best = min(groups, key=lambda group: statistics.fmean(_main(row) for row in group))
    return best + [row for row in rows if row.status == "wrong"]


def _main(row: Row) -> float:
    assert row.times is not None
    samples = row.times.cold or row.times.warm or row.times.host
    return samples.median if samples else math.inf


def _samples(times: Times | None, kind: str) -> Samples | None:
    return None if times is None else getattr(times, kind)


def _kind(pair: tuple[list[Row], list[Row]], kind: Kind) -> str | None:
    """The kind of time that both sides have; None if there is none."""
    for name in ("cold", "warm") if kind == "device" else (kind,):
        if all(any(_samples(row.times, name) for row in rows) for rows in pair):
            return name
    return None


def _points(rows: Iterable[Row], kind: str) -> list[Point]:
    found = (_samples(row.times, kind) for row in rows)
    return [estimate.point(samples) for samples in found if samples]


def _noise(
    pairs: dict[Key, tuple[list[Row], list[Row]]], chosen: dict[Key, str | None], asked: Asked
) -> dict[str, Noise]:
    """The noise between processes, by device."""
    sides: dict[str, list[list[Point]]] = {}
    for key, pair in pairs.items():
        kind = chosen[key]
        for rows in pair if kind else ():
            timed = [row for row in rows if row.times is not None]
            assert timed[0].times is not None
            sides.setdefault(timed[0].times.device, []).append(_points(timed, str(kind)))
    if asked.noise is not None:
        return {device: Noise(asked.noise, math.inf, measured=False) for device in sides}
    return {device: estimate.pool(points, device) for device, points in sides.items()}


def _line(
    pair: tuple[list[Row], list[Row]],
    kind: str | None,
    noise: dict[str, Noise],
    asked: Asked,
    judged: int,
) -> Line | None:
    """The case of one thing; None if it is right on both sides and timed on none."""
    old, new = pair
    last = (new or old)[-1]
    config = text_of(last.config) if asked.by_config else ""
    line = partial(Line, op=last.op, backend=last.backend, problem=last.problem, config=config)
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
    if kind is None:
        if _kind((old, old), asked.kind) is None:
            return None
        reason = new[-1].reason or f"no {asked.kind} time in NEW"
        return line(case="not measured", effect=None, reason=reason)
    effect = _effect(pair, kind, noise, asked, judged)
    notes = [f"{row.status}: {row.reason}" for row in new[-1:] if row.status != "ok"]
    configs = [text_of(next(row for row in rows if row.times).config) for rows in pair]
    if configs[0] != configs[1]:
        notes.append(f"config {configs[0] or 'none'} -> {configs[1] or 'none'}")
    case = verdict(effect, asked.threshold)
    return line(case=case, effect=effect, reason="; ".join(notes))


def _effect(
    pair: tuple[list[Row], list[Row]],
    kind: str,
    noise: dict[str, Noise],
    asked: Asked,
    judged: int,
) -> Effect:
    """The ratio with its interval, of one of `judged` things that share the confidence."""
    timed = [[row for row in rows if _samples(row.times, kind)] for rows in pair]
    points = [_points(rows, kind) for rows in timed]
    assert timed[0][0].times is not None
    scatter = noise[timed[0][0].times.device]
    old, new = (estimate.estimate(side, scatter) for side in points)
    ratio = estimate.ratio(old, new)
    low, high = ratio.interval(1 - (1 - asked.confidence) / judged)
    clocks = [_clock(rows) if kind != "host" else None for rows in timed]
    if clocks[0] and clocks[1]:
        cycles = clocks[1] / clocks[0]  # ratio of cycles = ratio of times x this
        low, high = min(low, low * cycles), max(high, high * cycles)
    return Effect(
        ratio=math.exp(ratio.log),
        low=low,
        high=high,
        kind=kind,
        old_us=math.exp(old.log),
        new_us=math.exp(new.log),
        old_mhz=clocks[0],
        new_mhz=clocks[1],
        processes=(len(points[0]), len(points[1])),
    )


def _clock(rows: Sequence[Row]) -> float | None:
    clocks = [row.times.sm_clock_mhz for row in rows if row.times and row.times.sm_clock_mhz]
    return statistics.fmean(clocks) if clocks else None


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
