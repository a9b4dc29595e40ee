"""Where and how the rows were made: one entry per distinct machine and set of versions."""

import json
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..bench.records import Row
from .frame import device
from .limits import ceilings

PER_RUN = ("date", "command", "ceilings", "interpreted", "gpu_uuid")  # differ on one machine
MAIN_PACKAGES = ("torch", "triton", "tilelang", "nvidia-cutlass-dsl", "numpy")


@dataclass(frozen=True, slots=True)
class Machine:
    """A device with its software, and the facts of the runs on it; each fact is (name, text)."""

    device: str
    rows: int
    facts: list[tuple[str, str]]


def machines(rows: list[Row]) -> list[Machine]:
    """Every distinct environment in order of appearance; what a record lacks is left out."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        fixed = {k: v for k, v in row.environment.items() if k not in PER_RUN}
        groups.setdefault(json.dumps([device(row), fixed], sort_keys=True), []).append(row)
    return [Machine(device(mine[0]), len(mine), _facts(mine)) for mine in groups.values()]


def _facts(rows: list[Row]) -> list[tuple[str, str]]:
    environment = rows[0].environment
    packages = dict(environment.get("packages") or {})
    main = [name for name in MAIN_PACKAGES if name in packages]
    others = [name for name in sorted(packages) if name not in main]
    facts = {
        "GPU": _joined(
            environment.get("gpu"),
            _number(environment.get("memory_bytes"), "GiB", 2**30),
            _number(environment.get("sm_count"), "SMs"),
            _number(environment.get("l2_bytes"), "MiB of L2", 2**20),
        ),
        "GPUs used": _shares(rows),
        "CPU": _joined(environment.get("cpu"), _number(environment.get("threads"), "threads")),
        "driver": environment.get("driver"),
        "CUDA": environment.get("cuda"),
        "ptxas": environment.get("ptxas"),
        "nvcc": environment.get("nvcc"),
        "Python": environment.get("python"),
        "packages": ", ".join(f"{name} {packages[name]}" for name in (*main, *others)),
        "source": source(environment),
        "SM clock": _clocks(rows),
        "throttling": _throttling(rows),
        "ceilings": _ceilings(rows),
        "dates": _span(sorted(_values(rows, "date"))),
        "commands": "; ".join(_values(rows, "command")),
    }
    return [(name, str(text)) for name, text in facts.items() if text]


def _values(rows: list[Row], name: str) -> list[str]:
    """What the rows say of one field, each value once."""
    values = (row.environment.get(name) for row in rows)
    return list(dict.fromkeys(str(value) for value in values if value))


def _shares(rows: list[Row]) -> str:
    """How many rows each GPU made, by the start of its UUID; nothing if there was only one."""
    counts = Counter(str(row.environment.get("gpu_uuid"))[:8] for row in rows)
    if len(counts) < 2:
        return ""
    return ", ".join(f"{uuid} ({count} rows)" for uuid, count in counts.items())


def _number(value: Any, unit: str, divisor: int = 1) -> str:
    return "" if value is None else f"{value / divisor:.4g} {unit}"


def _joined(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def source(environment: dict[str, Any]) -> str:
    """The commit that ran, and whether it had changes; empty if it is not known."""
    commit = environment.get("commit")
    dirty = ", with uncommitted changes" if environment.get("dirty") else ""
    return f"commit {str(commit)[:12]}{dirty}" if commit else ""


def _clocks(rows: list[Row]) -> str:
    clocks = [row.times.sm_clock_mhz for row in rows if row.times and row.times.sm_clock_mhz]
    if not clocks:
        return ""
    return f"median {median(clocks):.0f} MHz, from {min(clocks):.0f} to {max(clocks):.0f} by row"


def _throttling(rows: list[Row]) -> str:
    """How many samples were dropped for heat or supply, of how many."""
    times = [row.times for row in rows if row.times and row.times.device == "cuda"]
    samples = [one for t in times for one in (t.cold, t.warm) if one]
    dropped = sum(one.dropped for one in samples)
    total = dropped + sum(one.count for one in samples)
    return f"{dropped} of {total} samples were throttled and dropped" if samples else ""


def _ceilings(rows: list[Row]) -> str:
    """The ceilings of the last run that measured any."""
    measured = [ceilings(row) for row in rows if row.environment.get("ceilings")]
    if not measured:
        return ""
    last = measured[-1]
    return _joined(
        _number(last.copy, "TB/s copy", 10**12),
        *(_number(rate, f"TFLOP/s {dtype} matmul", 10**12) for dtype, rate in last.matmul.items()),
        _number(last.floor_us, "µs for an empty kernel"),
    )


def _span(dates: list[str]) -> str:
    return dates[0] if len(dates) == 1 else " to ".join((dates[0], dates[-1])) if dates else ""
