"""What the prefill kernels compile to for an H100, without one."""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.errors import OptionError
from mamba3_bench.kernels.problem import Options, Problem

CPU = torch.device("cpu")
SHARED = 227 * 1024  # bytes of shared memory that one block of an H100 can have
TYPICAL = ("z", "dt_bias", "b_norm", "c_norm", "b_bias", "c_bias", "d")
KINDS: dict[str, tuple[torch.dtype, Any]] = {
    "bf16": (torch.bfloat16, "dtype"),
    "fp16": (torch.float16, "dtype"),
    "fp32": (torch.float32, "dtype"),
    "tf32": (torch.float32, "tf32"),
}


def problem(kind: str, N: int, P: int, S: int) -> Problem:
    """One sequence that is cut: all three kernels are launched."""
    dtype, matmul = KINDS[kind]
    return Problem(
        "prefill", 1, 2048, 64, 1, P, N, 1, S, dtype, torch.float32,
        options=Options(matmul=matmul), optional=TYPICAL,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"chunk": 48}, "chunk: expected one of 16, 32, 64, 128, got 48"),
        ({"chunk": 32, "piece": 48}, "piece: expected a multiple of 32 tokens, or 0 for all"),
        ({"chunk": 16, "piece": 32, "segment": 48}, "segment: expected a multiple of 32"),
        ({"chunk": 16, "segment": -16}, "segment: expected a multiple of 16 .* got -16"),
        ({"num_warps": 3}, "num_warps: expected one of 1, 2, 4, 8, 16, got 3"),
        ({"num_stages": 0}, "num_stages: expected one of 1, 2, 3, 4, 5, got 0"),
    ],
)
def test_a_config_that_cuts_wrongly_is_refused(config: dict[str, int], said: str) -> None:
    """By an error that names the field: the kernel would skip tokens."""
    from mamba3_bench.kernels.triton.prefill import Config

    with pytest.raises(OptionError, match=f"config.{said}"):
        Config(**config)


def test_more_sequences_than_a_grid_has_are_refused() -> None:
    """65535 rows of a batch are taken, one more is not."""
    case = problem("bf16", 64, 64, 16)
    supports = registry.get("prefill", "triton").supports
    assert supports(replace(case, B=65535), registry.COMPILE_ONLY) is None
    assert "65536 sequences" in str(supports(replace(case, B=65536), registry.COMPILE_ONLY))


def compile_all(case: Problem, record: Any) -> None:
    """Every hand-picked config of a problem, with its figures on record."""
    implementation = registry.get("prefill", "triton")
    assert implementation.resources is not None
    for config in implementation.configs(case, CPU):
        found = implementation.resources(case, config)
        assert {"activate", "_prefill"} <= {one.kernel for one in found}
        for one in found:
            record(f"{one.kernel} {config}", f"{one.registers} registers, {one.spills} B spilled")
            assert one.shared <= SHARED, (config, one)
            assert one.threads == 128 or one.threads == 32 * config.num_warps


@pytest.mark.parametrize(
    ("kind", "N", "P", "S"),
    [("bf16", 128, 64, 32), ("fp32", 16, 32, 4), ("bf16", 64, 64, 32), ("tf32", 256, 32, 64)],
)
def test_main_shapes_compile(kind: str, N: int, P: int, S: int, record_property: Any) -> None:
    """The shape of the published models, a half rotated, and the ends of the range."""
    compile_all(problem(kind, N, P, S), record_property)


@pytest.mark.slow
@pytest.mark.parametrize("P", [32, 64, 128])
@pytest.mark.parametrize("N", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_compiles(kind: str, N: int, P: int, record_property: Any) -> None:
    """Whatever is not refused has a config that an H100 can launch."""
    compile_all(problem(kind, N, P, N // 4), record_property)
