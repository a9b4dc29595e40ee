"""The least time a call can take, by the ceilings measured in the same run."""

import math
from dataclasses import dataclass
from typing import Any

from ..bench.records import Error, Row


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What a device reached in a run on the simplest of loads; None where it was not measured."""

    copy: float | None  # bytes per second, read and written both counted
    matmul: dict[str, float]  # FLOP per second by dtype
    floor_us: float | None  # time of an empty kernel


@dataclass(frozen=True, slots=True)
class Limit:
    """The least time in microseconds that the ceilings allow, and which of them it comes from.

    By memory it may be passed by a few per cent: a call that mostly reads is spared the
    turn-arounds of a copy.
    """

    us: float
    by: str  # memory, matmul or launch


def ceilings(row: Row) -> Ceilings:
    """The ceilings in a row's environment, as bench/ceilings.py writes them."""
    raw = row.environment.get("ceilings") or {}
    prefix = "matmul_flops_per_s."
    matmul = {name.removeprefix(prefix): raw[name] for name in raw if name.startswith(prefix)}
    return Ceilings(raw.get("copy_bytes_per_s"), matmul, raw.get("kernel_floor_us"))


def limit(row: Row) -> Limit | None:
    """The largest of bytes / copy rate, FLOPs / matmul rate and the time of an empty kernel.

    None if the row's run measured no ceilings. A ceiling that is missing only lowers the limit.
    """
    measured = ceilings(row)
    times = {}
    if measured.copy:
        times["memory"] = row.bytes / measured.copy * 1e6
    if matmul := measured.matmul.get(matmul_dtype(row.problem)):
        times["matmul"] = row.flops / matmul * 1e6
    if measured.floor_us:
        times["launch"] = measured.floor_us
    if not times:
        return None
    by = max(times, key=lambda name: times[name])
    return Limit(times[by], by)


def matmul_dtype(problem: dict[str, Any]) -> str:
    """The key of the matmul ceiling that a problem is held against."""
    tf32 = problem.get("option.matmul") == "tf32"
    return "tf32" if tf32 else str(problem.get("dtype", ""))


def error_ratio(error: Error) -> float:
    """Error over bound, the larger of both norms: up to 1 is right; infinite for NaN."""
    pairs = ((error.l2, error.l2_bound), (error.largest, error.largest_bound))
    return max(_ratio(value, bound) for value, bound in pairs)


def _ratio(value: float, bound: float) -> float:
    if math.isnan(value) or math.isnan(bound):
        return math.inf
    if bound == 0:
        return 0.0 if value == 0 else math.inf
    return value / bound
