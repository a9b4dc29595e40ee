"""Side by side: rows of any ops that were timed interleaved, and the ratios of each pair.

A contest is a match with all its repeats: processes that ran the same kernels on the same kind of
machine with the same toolchain. The same match of another kernel is a contest of its own. What a
ratio's interval covers is in ratios.py.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bench import estimate
from ..bench.estimate import Noise, Point
from ..bench.hardware import identity
from ..bench.records import Row, process
from .cited import cited
from .frame import device
from .limits import error_ratio
from .ratios import Ratio, pairs, points, ratio, samples_of

YARDSTICK = "torch"


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
    made: str  # commit and start of the first process, if the match was run with other kernels too
    processes: int
    noise: Noise  # between processes: of all contests, assumed where nothing was repeated
    point: dict[str, Any]  # the problem that the names leave out: of the first measure
    measures: tuple[str, ...]  # the best of ours for each of its problems
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """The rows of a contest by contender, and who measures the others."""

    contenders: dict[str, list[Row]]
    timed: dict[str, list[Row]]  # those of each contender that have a time
    kind: str  # cold, or warm where somebody has no other time
    medians: dict[str, float]  # of who has a time, fastest first
    measures: tuple[str, ...]  # the best of ours for each of its problems
    strongest: tuple[str, ...]  # the best of theirs

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        return [row for mine in self.contenders.values() for row in mine]

    @property
    def timer(self) -> str:
        """What the times are of: cuda or cpu."""
        times = self.timed[self.measures[0]][0].times
        assert times is not None
        return times.device

    def sides(self) -> Iterator[list[Point]]:
        """The ratios of all others to the first measure, by process."""
        first = self.measures[0]
        for key in self.medians:
            if key != first:
                yield points(pairs(self.timed[key], self.timed[first], self.kind))


def contests(rows: Iterable[Row]) -> list[Contest]:
    """Every match of ours with rivals or other families; its repeats are one contest."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.match:
            groups.setdefault((_machine(row), row.match), []).append(row)
    found = []
    for (name, _), mine in groups.items():
        parts = _made_alike(mine)
        met = [_match(part) for part in parts]
        found += [(name, len(parts) > 1, one) for one in met if one is not None]
    noise = estimate.pools((one.timer, side) for _, _, one in found for side in one.sides())
    return [_contest(name, one, several, noise[one.timer]) for name, several, one in found]


def _machine(row: Row) -> str:
    return str(row.environment.get("gpu") or device(row))


def _made_alike(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of a match, apart where a kernel, the toolchain or the seed is another."""
    processes: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        processes.setdefault(process(row), []).append(row)
    groups: list[tuple[str, dict[str, str], list[Row]]] = []
    for mine in processes.values():
        name = json.dumps([mine[0].seed, identity(mine[0].environment)], sort_keys=True)
        sources = {_solver(row): row.source for row in mine}
        for other, known, kept in groups:
            # a process that was cut off lacks some
            if other == name and all(
                known.get(s, source) == source for s, source in sources.items()
            ):
                known |= sources
                kept += mine
                break
        else:
            groups.append((name, sources, mine))
    return [kept for _, _, kept in groups]


def _solver(row: Row) -> str:
    return repr((row.op, row.backend, row.problem))


def _match(rows: Sequence[Row]) -> Match | None:
    """None if nobody is beside ours, or if there are not two times."""
    contenders: dict[str, list[Row]] = {}
    for row in rows:
        key = repr((row.op, row.backend, row.problem, row.config))
        contenders.setdefault(key, []).append(row)
    if not any(row.rival for row in rows) and len({row.op for row in rows}) == 1:
        return None
    cold = all(row.times.cold for row in rows if row.times and row.times.warm)
    kind = "cold" if cold else "warm"
    timed = {
        key: [row for row in mine if row.times and getattr(row.times, kind)]
        for key, mine in contenders.items()
    }
    times = {key: _median(mine, kind) for key, mine in timed.items() if mine}
    medians = {key: times[key] for key in sorted(times, key=lambda key: times[key])}
    ours: dict[str, str] = {}  # problem -> the fastest of ours
    rivals: dict[str, str] = {}  # the same of theirs
    yardsticks: dict[str, str] = {}  # plain PyTorch measures others where there is nothing else
    for key in medians:
        first = contenders[key][0]
        kinds = rivals if first.rival else yardsticks if first.backend == YARDSTICK else ours
        kinds.setdefault(repr(first.problem), key)
    ours = ours or yardsticks
    if len(medians) < 2 or not ours:
        return None
    measures = sorted(ours.values(), key=lambda key: _size(contenders[key][0].problem))
    return Match(contenders, timed, kind, medians, tuple(measures), tuple(rivals.values()))


def _contest(name: str, match: Match, several: bool, noise: Noise) -> Contest:
    """several: the match has contests of other kernels too."""
    point = match.contenders[match.measures[0]][0].problem

    def line(key: str) -> Line:
        mine = match.timed[key]
        first = (mine or match.contenders[key])[0]
        errors = [error_ratio(error) for error in first.errors.values()]
        ratios = (
            None if key == other else ratio(pairs(mine, match.timed[other], match.kind), noise)
            for other in match.measures
        )
        return Line(
            name=label(first.op, first.problem, point, first.backend),
            op=first.op,
            backend=first.backend,
            rival=first.rival,
            status=first.status,
            problem=first.problem,
            us=match.medians.get(key),
            reason=first.reason,
            kind=match.kind,
            strongest=key in match.strongest,
            ratios=tuple(ratios),
            published_us=cited(first.problem),
            error_over_bound=max(errors, default=None),
        )

    untimed = (key for key in match.contenders if key not in match.medians)
    return Contest(
        device=name,
        made=_made(match.rows[0]) if several else "",
        processes=len({process(row) for mine in match.timed.values() for row in mine}),
        noise=noise,
        point=point,
        measures=tuple(line(key).name for key in match.measures),
        lines=tuple(line(key) for key in (*match.medians, *untimed)),
    )


def _made(row: Row) -> str:
    commit, date = row.environment.get("commit"), row.environment.get("date")
    return ", ".join(part for part in (commit and f"commit {commit[:12]}", date) if part)


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


def _median(rows: Sequence[Row], kind: str) -> float:
    """The geometric mean of the medians of its processes."""
    return float(np.exp(np.mean([np.log(samples_of(row, kind).median) for row in rows])))
