"""Rows as one flat table, from which every output of a report is made."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pandas as pd

from ..bench.records import Row, Samples
from ..bench.show import DIMS
from ..kernels.registry import INTERPRETERS
from .limits import error_ratio, limit, matmul_dtype
from .repeats import Measured, Scatter, merged, noise_of

DTYPES = ("dtype", "state_dtype")
TIMES = ("cold", "warm", "host")
STATISTICS = ("us", "q1_us", "q3_us", "samples", "dropped")
ENDS = ("low_us", "high_us")


def frame(rows: Iterable[Row]) -> pd.DataFrame:
    """One line per row, in order; of rows with the same key the last counts, repeats are one line.

    `_low_us` and `_high_us` are the ends of the 95 % interval of a median.
    Units are in the column names: `_us` microseconds, `_mhz`, `_s`; `bytes`, `flops`,
    `intensity` FLOP per byte, `gb_per_s` 1e9 bytes and `tflop_per_s` 1e12 FLOP per second of the
    cold median. Fields of a problem beyond its dims and dtypes are columns `problem.<name>`.
    """
    lines = merged({row.key: row for row in rows}.values())
    noise = noise_of(lines)
    table = pd.DataFrame([flat(line.row) | _known(line, noise) for line in lines])
    extra = sorted(name for name in table.columns if name.startswith("problem."))
    by_op = table.groupby("op")  # what another family does not have makes no variant of this one
    differing = [name for name in extra if (by_op[name].nunique(dropna=False) > 1).any()]
    table["variant"] = [_variant(line, differing) for _, line in table.iterrows()]
    return table[[*(name for name in table.columns if name not in extra), *extra]]


def flat(row: Row) -> dict[str, Any]:
    """One row as plain values; what it does not have is None."""
    problem, environment = row.problem, row.environment
    line: dict[str, Any] = {
        "op": row.op,
        "backend": row.backend,
        "device": device(row),
        "timer": row.times.device if row.times else None,
        # of a run on a CPU; of its kernels those that a CPU cannot run otherwise
        "interpreted": bool(environment.get("interpreted")) and row.backend in INTERPRETERS,
        "status": row.status,
        "reason": row.reason,
    }
    line |= {name: problem.get(name) for name in (*DIMS, *DTYPES)}
    line["config"] = " ".join(f"{name}={value}" for name, value in row.config.items())
    for kind in TIMES:
        samples = getattr(row.times, kind) if row.times else None
        line |= {f"{kind}_{name}": value for name, value in _statistics(samples).items()}
    cold = line["cold_us"]
    bound = limit(row)
    ratios = {name: error_ratio(error) for name, error in row.errors.items()}
    worst = max(ratios, key=lambda name: ratios[name]) if ratios else None
    line |= {
        "sm_clock_mhz": row.times.sm_clock_mhz if row.times else None,
        "bytes": row.bytes,
        "flops": row.flops,
        "intensity": row.flops / row.bytes if row.bytes else None,
        "gb_per_s": row.bytes / cold / 1e3 if cold else None,
        "tflop_per_s": row.flops / cold / 1e6 if cold else None,
        "matmul_dtype": matmul_dtype(problem),
        "limit_us": bound.us if bound else None,
        "limited_by": bound.by if bound else None,
        "share_of_limit": bound.us / cold if bound and cold else None,
        "error_over_bound": ratios[worst] if worst else None,
        "worst_output": worst,
        "errors": json.dumps({name: _finite(asdict(e)) for name, e in row.errors.items()}),
        "registers": _most(row.resources, "registers"),
        "spills": _most(row.resources, "spills"),
        "shared": _most(row.resources, "shared"),
        "compile_s": row.compile_s,
        "gpu_uuid": environment.get("gpu_uuid"),
        "seed": row.seed,
        "commit": environment.get("commit"),
        "source": row.source,
        "dirty": environment.get("dirty"),
        "date": environment.get("date"),
        "command": environment.get("command"),
        "key": row.key,
    }
    known = {*DIMS, *DTYPES, "op"}
    line |= {f"problem.{n}": _text(v) for n, v in problem.items() if n not in known}
    return line


def _known(line: Measured, noise: Scatter) -> dict[str, float | None]:
    """How often a line was measured, and the ends of its intervals."""
    found: dict[str, float | None] = {"repeats": line.repeats}
    for kind in TIMES:
        ends = line.interval(kind, noise) or (None, None)
        found |= {f"{kind}_{name}": end for name, end in zip(ENDS, ends, strict=True)}
    return found


def device(row: Row) -> str:
    """What ran the row: the GPU's name, or `CPU` with its name where the record has one."""
    gpu = row.environment.get("gpu")
    if gpu and (row.times is None or row.times.device == "cuda"):
        return str(gpu)
    cpu = row.environment.get("cpu")
    return f"CPU ({cpu})" if cpu else "CPU"


def _statistics(samples: Samples | None) -> dict[str, float | None]:
    if samples is None:
        return dict.fromkeys(STATISTICS)
    values = (samples.median, samples.q1, samples.q3, samples.count, samples.dropped)
    return dict(zip(STATISTICS, values, strict=True))


def _finite(values: dict[str, float]) -> dict[str, float | str]:
    """JSON has no NaN and no infinity: such values become their names."""
    return {name: v if math.isfinite(v) else str(v) for name, v in values.items()}


def _most(resources: list[dict[str, Any]], name: str) -> int | None:
    """The largest value over the kernels of one call."""
    values = [kernel[name] for kernel in resources if kernel.get(name) is not None]
    return max(values, default=None)


def _text(value: Any) -> str | None:
    """A problem's extra field as text, so that a column has one type."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return " ".join(str(item) for item in value)
    return str(value)


def _variant(line: "pd.Series[Any]", names: list[str]) -> str:
    """How a problem differs from the others of its report, beyond dims and dtypes."""
    parts = [(name.removeprefix("problem.").removeprefix("option."), line[name]) for name in names]
    said = [(name, value) for name, value in parts if pd.notna(value) and value != "False"]
    return ", ".join(f"{name}={value}" for name, value in said)
