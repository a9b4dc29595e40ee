"""Winners and candidates in other people's formats.

`triton.Config` source, for whoever launches these kernels under an autotuner or a table of their
own; and the T4 results format for autotuning (schema version 1.0.0), which Kernel Tuner and the
BAT benchmark suite read and write.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..kernels.lookup import plain
from .fields import Candidate, Decision

SCHEMA = "1.0.0"
TIME = "time"
OPTIONS = {"warps": "num_warps", "num_warps": "num_warps", "num_stages": "num_stages"}


def triton_source(decisions: Sequence[Decision]) -> str:
    """Python source: a dict of triton.Config by GPU, op and problem, of the Triton winners.

    Names of parameters are those of our configs; warps and stages are the compiler's.
    """
    lines = [
        '"""Tuned configs, written by `mamba3-bench tune`; times are medians in microseconds."""',
        "",
        "import triton",
        "",
        "CONFIGS = {",
    ]
    for one in decisions:
        if one.field.backend == "triton" and one.winner is not None:
            name = json.dumps(one.field.problem, sort_keys=True)
            key = f"{one.field.machine[1]!r}, {one.field.op!r}, {name!r}"
            lines.append(f"    # {one.us(one.winner):.4g} us")
            lines.append(f"    ({key}): {_config(one.winner.config)},")
    return "\n".join([*lines, "}", ""])


def _config(values: dict[str, Any]) -> str:
    own = {name: value for name, value in values.items() if name not in OPTIONS}
    options = [f", {OPTIONS[name]}={value!r}" for name, value in values.items() if name in OPTIONS]
    return f"triton.Config({own!r}{''.join(options)})"


def t4_results(decision: Decision) -> dict[str, Any]:
    """The candidates of a field as T4 results; times in milliseconds, as its metadata says."""
    return {
        "schema_version": SCHEMA,
        "metadata": {"timeunit": "milliseconds"},
        "results": [_result(one) for one in decision.field.candidates if one.outcome != "left"],
    }


def _result(one: Candidate) -> dict[str, Any]:
    samples = one.race
    seconds = next((row.compile_s for row in one.rows if row.compile_s is not None), 0.0)
    runtimes = [value / 1e3 for value in samples.values] if samples else []
    measured: list[dict[str, Any]] = []
    if samples is not None:
        measured.append({"name": TIME, "value": samples.median / 1e3, "unit": "ms"})
    for row in (one.raced,) if one.raced else ():
        for name, error in row.errors.items():
            if math.isfinite(error.l2):
                measured.append(
                    {"name": f"{name} relative L2 error", "value": error.l2, "unit": ""}
                )
    if one.reason:
        measured.append({"name": "reason", "value": one.reason, "unit": ""})
    return {
        "timestamp": one.rows[-1].environment.get("date", ""),
        "configuration": one.config,
        "objectives": [TIME],
        "times": {
            "compilation_time": seconds * 1e3,
            "runtimes": runtimes,
            "framework": 0.0,
            "search_algorithm": 0.0,
            "validation": 0.0,
        },
        "invalidity": one.outcome,
        "correctness": 1.0 if one.outcome == "correct" else 0.0,
        "measurements": measured,
    }


def t4_metadata(decision: Decision) -> dict[str, Any]:
    """The machine and packages of a field, as T4 metadata."""
    environment = decision.field.environment
    packages = environment.get("packages") or {}
    requirements = [f"{name}=={version}" for name, version in packages.items()]
    device = {name: environment.get(name) for name in ("gpu", "driver", "cuda", "ptxas")}
    return {
        "schema_version": SCHEMA,
        "metadata": {
            "hardware": {"hardware_description": [{"cpu": environment.get("cpu")}, device]},
            "environment": {"device_query": device, "requirements": requirements},
        },
    }


def write(decisions: Sequence[Decision], folder: Path) -> list[Path]:
    """Write all of it into a folder: triton_configs.py, and two T4 files for each field; those of
    another decision go."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("t4-*.json"):
        old.unlink()
    source = folder / "triton_configs.py"
    source.write_text(triton_source(decisions), encoding="utf-8")
    written = [source]
    for number, one in enumerate(decisions, 1):
        stem = f"t4-{number}-{one.field.op}-{plain(one.field.backend)}"
        for kind, content in (("results", t4_results(one)), ("metadata", t4_metadata(one))):
            path = folder / f"{stem}-{kind}.json"
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            written.append(path)
    return written
