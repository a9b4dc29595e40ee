"""Side by side: rows of any ops that were timed interleaved, and the ratios of each pair.

The turns of a match (A B, B A, A B, ...) meet the same clocks and the same heat, so a ratio is
taken turn by turn. Its interval is a bootstrap: of whole processes where there are several, and
within each of blocks of consecutive turns, because neighbours are correlated. With one process it
says nothing of what differs between processes, about 0.5 % on a GPU.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bench.records import Row, Samples
from .cited import cited
from .frame import device
from .limits import error_ratio

RESAMPLES = 1000
CONFIDENCE = 0.95
YARDSTICK = "torch"
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ratio:
    """One time over another, with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """One contender of a match."""

    name: str
    op: str
    backend: str
    rival: bool
    status: str
    problem: dict[str, Any]
    us: float | None  # None: it has no time, for its reason
    reason: str
    kind: str  # cold or warm
    strongest: bool  # the fastest rival of its op and shape
    ratios: tuple[Ratio | None, ...]  # its time over each measure's, in their order
    published_us: float | None
    error_over_bound: float | None


@dataclass(frozen=True, slots=True)
class Contest:
    """A match as a table: all that were timed together, fastest first."""

    device: str
    point: dict[str, Any]  # the problem that the names leave out: of the first measure
    measures: tuple[str, ...]  # the best of ours for each of its problems
    lines: tuple[Line, ...]


def contests(rows: Iterable[Row]) -> list[Contest]:
    """Every match of ours with rivals or other families; repeats are one contest."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.match:
            groups.setdefault((_machine(row), row.match), []).append(row)
    found = (_contest(name, mine) for (name, _), mine in groups.items())
    return [contest for contest in found if contest is not None]


def _machine(row: Row) -> str:
    return str(row.environment.get("gpu") or device(row))


def _contest(name: str, rows: Sequence[Row]) -> Contest | None:
    contenders: dict[str, list[Row]] = {}
    for row in rows:
        key = repr((row.op, row.backend, row.problem, row.config))
        contenders.setdefault(key, []).append(row)
    if not any(row.rival for row in rows) and len({row.op for row in rows}) == 1:
        return None
    timed = {
        key: [row for row in mine if row.times and (row.times.cold or row.times.warm)]
        for key, mine in contenders.items()
    }
    cold = all(row.times and row.times.cold for mine in timed.values() for row in mine)
    kind = "cold" if cold else "warm"
    medians = {key: _median(mine, kind) for key, mine in timed.items() if mine}
    order = sorted(medians, key=lambda key: medians[key])
    ours: dict[str, str] = {}  # problem -> the fastest of ours
    rivals: dict[str, str] = {}  # the same of theirs
    yardsticks: dict[str, str] = {}  # plain PyTorch measures others where there is nothing else
    for key in order:
        first = contenders[key][0]
        kinds = rivals if first.rival else yardsticks if first.backend == YARDSTICK else ours
        kinds.setdefault(repr(first.problem), key)
    ours = ours or yardsticks
    if len(order) < 2 or not ours:
        return None
    measures = sorted(ours.values(), key=lambda key: _size(contenders[key][0].problem))
    point = contenders[measures[0]][0].problem

    def line(key: str) -> Line:
        first = (timed[key] or contenders[key])[0]
        errors = [error_ratio(error) for error in first.errors.values()]
        ratios = (
            None if key == other else _ratio(timed[key], timed[other], kind) for other in measures
        )
        return Line(
            name=label(first.op, first.problem, point, first.backend),
            op=first.op,
            backend=first.backend,
            rival=first.rival,
            status=first.status,
            problem=first.problem,
            us=medians.get(key),
            reason=first.reason,
            kind=kind,
            strongest=key in rivals.values(),
            ratios=tuple(ratios),
            published_us=cited(first.problem),
            error_over_bound=max(errors, default=None),
        )

    lines = [line(key) for key in (*order, *(key for key in contenders if key not in medians))]
    names = tuple(line(key).name for key in measures)
    return Contest(name, point, names, tuple(lines))


def label(op: str, problem: dict[str, Any], point: dict[str, Any], backend: str) -> str:
    """A contender's name: op and backend, and what tells its problem from that of the point."""
    parts = [op]
    if "R" in problem:
        parts.append(f"R{problem['R']}")
    if (problem["H"], problem["P"]) != (point["H"], point["P"]):
        parts.append(f"{problem['P']} x {problem['N']} heads")
    elif problem["N"] != point["N"]:
        parts.append(f"{problem['N'] / point['N']:g} N")
    if op.endswith("decode") and problem["L"] > 1:
        parts.append(f"cache {problem['L']}")
    return f"{' '.join(parts)}, {backend}"


def _size(problem: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(problem.get(dim) or 0 for dim in ("R", "N", "H"))


def _times(row: Row, kind: str) -> Samples:
    assert row.times is not None
    samples: Samples = getattr(row.times, kind)
    return samples


def _median(rows: Sequence[Row], kind: str) -> float:
    """The geometric mean of the medians of its processes."""
    return float(np.exp(np.mean([np.log(_times(row, kind).median) for row in rows])))


def _ratio(mine: Sequence[Row], others: Sequence[Row], kind: str) -> Ratio | None:
    """Median of the ratios of turns, by process; None where no turns are recorded in pairs."""
    by_repeat = {row.repeat: row for row in others}
    logs = []
    for row in mine:
        other = by_repeat.get(row.repeat)
        pair = [_times(one, kind).values for one in (row, other) if one is not None]
        if len(pair) == 2 and len(pair[0]) == len(pair[1]) > 1:
            logs.append(np.log(np.array(pair[0]) / np.array(pair[1])))
    if not logs:
        return None
    generator = np.random.default_rng(0)  # the same rows give the same interval
    # processes with replacement, and within each blocks of turns
    medians = np.stack([_medians(turns, generator) for turns in logs])  # (processes, RESAMPLES)
    chosen = generator.integers(len(logs), size=medians.shape)
    means = np.take_along_axis(medians, chosen, 0).mean(0)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, (tail, 100 - tail))
    middle = np.mean([np.median(turns) for turns in logs])
    return Ratio(*(float(np.exp(value)) for value in (middle, low, high)))


def _medians(turns: Floats, generator: np.random.Generator) -> Floats:
    """Medians of resamples of a series, made of blocks of sqrt(n) consecutive turns."""
    size = isqrt(len(turns))
    blocks = -(-len(turns) // size)
    starts = generator.integers(len(turns) - size + 1, size=(RESAMPLES, blocks))
    taken = (starts[..., None] + np.arange(size)).reshape(RESAMPLES, -1)[:, : len(turns)]
    return np.asarray(np.median(turns[taken], axis=1))
