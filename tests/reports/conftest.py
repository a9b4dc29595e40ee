"""Rows to report: made up by the tests, in the schema that a run writes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mamba3_bench.bench.records import Error, Row, Samples, Status, Times, append
from mamba3_bench.kernels.problem import Options, Problem
from mamba3_bench.reports.main import write

MakeRow = Callable[..., Row]
CEILINGS = {
    "copy_bytes_per_s": 3e12,
    "matmul_flops_per_s.bfloat16": 7e14,
    "matmul_flops_per_s.float32": 5e13,
    "matmul_flops_per_s.tf32": 3.5e14,
    "kernel_floor_us": 2.0,
}
GPU = {
    "gpu": "Made-up GPU",
    "memory_bytes": 80 * 2**30,
    "sm_count": 132,
    "l2_bytes": 50 * 2**20,
    "driver": "580.1",
    "cuda": "13.0",
    "ptxas": "13.0.1",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "triton": "3.7.1"},
    "commit": "0123456789abcdef",
    "dirty": False,
    "command": "mamba3-bench sweep --state 64,128",
    "date": "2026-01-02T03:04:05Z",
    "ceilings": CEILINGS,
}
CPU = {"gpu": None, "python": "3.11.7", "packages": {"torch": "2.13.0"}, "date": "2026-01-02"}


@pytest.fixture(scope="session")
def make_row() -> MakeRow:
    """A function from what a test cares about to a row; each row gets a key of its own."""
    made = 0

    def make(
        backend: str = "triton",
        status: Status = "ok",
        *,
        cold: float | None = None,
        warm: float | None = None,
        timer: str = "cuda",
        environment: dict[str, Any] = GPU,
        reason: str | None = None,
        errors: dict[str, Error] | None = None,
        resources: list[dict[str, Any]] | None = None,
        key: str | None = None,
        config: dict[str, Any] | None = None,
        **dims: Any,
    ) -> Row:
        nonlocal made
        made += 1
        op = dims.pop("op", "prefill")
        matmul, pairing = dims.pop("matmul", "dtype"), dims.pop("pairing", "interleaved")
        sizes = {"B": 1, "L": 512, "H": 4, "G": 1, "P": 64, "N": 64, "R": 1, **dims}
        if op == "decode":
            sizes |= {"L": 1, "has_state": True}
        dtype = sizes.pop("dtype", torch.bfloat16)
        problem = Problem(
            op=op,
            S=sizes["N"] // 2,
            dtype=dtype,
            state_dtype=sizes.pop("state_dtype", torch.float32),
            options=Options(matmul=matmul, pairing=pairing),
            **sizes,
        )
        times = None
        if cold or warm:
            times = Times(
                device="cpu" if timer == "cpu" else "cuda",
                cold=Samples(cold, 0.97 * cold, 1.05 * cold, 50, 2) if cold else None,
                warm=Samples(warm, 0.98 * warm, 1.01 * warm, 50) if warm else None,
                host=Samples(17.25, 16.5, 18.0, 100),
                sm_clock_mhz=1755.0 if timer == "cuda" else None,
            )
        return Row(
            key=key or f"row-{made}",
            op=op,
            backend=backend,
            status=status,
            reason=reason if reason is not None else "" if status == "ok" else f"why {status}",
            problem=problem.as_dict(),
            config=config or {},
            seed=0,
            bytes=problem.bytes,
            flops=problem.flops,
            environment=environment,
            errors=errors or {},
            times=times,
            resources=resources or [],
        )

    return make


@pytest.fixture(scope="session")
def record(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[Row]], Path]:
    """A function that writes rows as a run does; returns the file."""

    def write(rows: list[Row]) -> Path:
        path = tmp_path_factory.mktemp("run") / "records.jsonl"
        path.touch()
        for row in rows:
            append(path, row)
        return path

    return write


@dataclass(frozen=True)
class Report:
    """What was reported, and where it lies."""

    rows: list[Row]
    records: Path
    folder: Path
    written: list[Path]

    @property
    def html(self) -> str:
        """The source of the page."""
        return (self.folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def report(make_row, record, tmp_path_factory) -> Report:
    """One row of every status, two ops, two dtypes, on a GPU."""
    bad = {"y": Error(float("nan"), 1e-3, float("nan"), 1e-2)}
    good = {"y": Error(4e-4, 1e-3, 2e-3, 1e-2)}
    rows = [
        make_row(cold=41.25, warm=30.0, errors=good, L=131),
        make_row(cold=80.5, warm=61.0, errors=good, L=262),
        make_row(
            "rival", "inaccurate", cold=161.0, errors={"y": Error(2e-3, 1e-3, 0.0, 1e-2)}, L=262
        ),
        make_row("cute", "skipped", reason="cute needs sm90 <&> | got [red]sm80[/]"),
        make_row("tilelang", "compile-failed", dtype=torch.float32),
        make_row("torch", "run-failed", op="decode", B=3),
        make_row("triton", "timeout", op="decode", R=4),
        make_row("triton", "throttled", op="decode", R=8),
        make_row("triton", "wrong", errors=bad, dtype=torch.float32),
    ]
    folder = tmp_path_factory.mktemp("report")
    records = record(rows)
    return Report(rows, records, folder, write([records], folder))
