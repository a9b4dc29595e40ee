"""Recorded tunings, made up: rows with the times, errors and resources that a test asks for."""

import numpy as np

from mamba3_bench.bench.grid import Axes, problems
from mamba3_bench.bench.records import Error, Row
from mamba3_bench.bench.timing import Times, summarise

GPU = "NVIDIA H100 80GB HBM3"
ENVIRONMENT = {
    "device": "cuda", "gpu": GPU, "driver": "580.1", "ptxas": "12.8.93", "cpu": "a cpu",
    "packages": {"torch": "2.11.0", "triton": "3.6.0"}, "shared_per_block": 232448,
    "date": "2026-11-22T00:00:00+00:00",
}  # fmt: skip


def problem(B=8, L=2048, op="prefill"):
    """A problem at the usual dims."""
    (found,) = problems(Axes(op=op, batch=(B,), length=(L,)))
    return found


def candidate(index, us, rng, at=None, *, config=None, names=None, of=3, confirm=2, **more):
    """The rows of one candidate: raced, and confirmed in some processes.

    us: its true time; `more`: fields of all rows; a status that is not ok ends with that row.
    """
    at = at or problem()
    status = more.pop("status", "ok")
    resources = more.pop("resources", [])
    config = config or {"chunk": 32 << index, "num_warps": 4}
    names = names or (("default",) if index == 0 else ()) + (f"chunk={config.get('chunk')}",)
    rows = []
    if resources:
        more_compiled = {"status": "skipped", "reason": "compiled", "resources": resources}
        rows.append(row(at, config, index, of, names, "resources", 0, **more_compiled))
    raced = {"status": status, "reason": "" if status == "ok" else "planted"} | more
    if status == "ok":
        raced["times"] = times(us, rng)
    rows.append(row(at, config, index, of, names, "tune", 0, **raced))
    for repeat in range(1, confirm + 1) if status == "ok" else ():
        shift = float(np.exp(rng.normal(0, 0.001)))  # of the process
        rows.append(
            row(at, config, index, of, names, "sweep", repeat, times=times(us * shift, rng), **more)
        )
    return rows


def times(us, rng):
    """Samples about a time."""
    samples = us * np.exp(rng.normal(0, 0.003, 40))
    return Times("cuda", summarise([float(value) for value in samples]), None)


def row(at, config, index, of, names, kind, repeat, **more):
    """One row."""
    plain = at.as_dict()
    error = {"y": Error(1e-3, 4e-3, 1e-2, 1e-1)}
    known = {
        "key": f"{plain} {config} {kind} {repeat}", "op": at.op, "backend": "triton",
        "status": "ok", "reason": "", "problem": plain, "config": config, "seed": 0, "bytes": 1,
        "flops": 1, "environment": ENVIRONMENT, "errors": error, "kind": kind, "repeat": repeat,
        "place": {"index": index, "of": of, "names": list(names)}, "source": "abc",
    }  # fmt: skip
    return Row(**known | more)
