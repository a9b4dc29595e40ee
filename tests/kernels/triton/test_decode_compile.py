"""What the decode kernel compiles to for an H100, without one."""

import itertools
import os
from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.errors import OptionError
from mamba3_bench.kernels.problem import OPTIONAL, Problem
from mamba3_bench.kernels.registry import COMPILE_ONLY
from mamba3_bench.kernels.triton.compile import compile_kernel
from mamba3_bench.kernels.triton.decode import Config, arguments, decode_kernel

BATCHES = (1, 4)  # a program for each SM, and more


def problem(**fields: Any) -> Problem:
    """The decode step of one layer of a 1.5B model."""
    usual = {
        "B": 1, "L": 1, "H": 64, "G": 1, "P": 64, "N": 128, "R": 1, "S": 32,
        "dtype": torch.bfloat16, "state_dtype": torch.float32, "has_state": True,
        "optional": tuple(name for name in OPTIONAL if not name.startswith("mimo")),
    }  # fmt: skip
    return Problem(op="decode", **(usual | fields))


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("R", [1, 4])
@pytest.mark.parametrize("B", BATCHES)
def test_default_config_hardly_spills(B: int, R: int, state_dtype: torch.dtype) -> None:
    """The default keeps its tile of h in registers: one number of a thread at most is not."""
    optional = OPTIONAL if R > 1 else problem().optional
    case = problem(B=B, R=R, state_dtype=state_dtype, optional=optional)
    implementation = registry.get("decode", "triton")
    assert implementation.resources is not None
    (found,) = implementation.resources(case, implementation.default(case, COMPILE_ONLY))
    assert found.spills <= 4


def test_state_moves_in_16_byte_words() -> None:
    """Every access to h is a vector of four 32-bit words: one per 16 bytes of a thread's share."""
    for state_dtype, B in itertools.product((torch.float32, torch.bfloat16), BATCHES):
        case = problem(B=B, state_dtype=state_dtype)
        config = registry.get("decode", "triton").default(case, COMPILE_ONLY)
        positional, constants = arguments(make_call(case, 0), config)
        ptx = compile_kernel(decode_kernel, *positional, **constants).asm["ptx"]
        words = 64 * 128 * state_dtype.itemsize // (32 * config.warps) // 16
        assert ptx.count("ld.global.v4.b32") == words
        assert ptx.count("st.global.v4.b32") == words


def test_default_has_more_warps_where_each_program_has_an_sm() -> None:
    """Up to 132 programs of 64 heads are two rows of a batch."""
    implementation = registry.get("decode", "triton")
    found = {
        (B, R): implementation.default(problem(B=B, R=R), COMPILE_ONLY)
        for B in (2, 3)
        for R in (1, 4)
    }
    assert found[3, 1] == found[3, 4] == Config(warps=2, unroll=1)
    assert found[2, 1] == Config(warps=4, unroll=1)
    assert found[2, 4] == Config(warps=8, unroll=4)


@pytest.mark.parametrize("field", ["warps", "unroll"])
def test_a_config_of_three_is_refused(field: str) -> None:
    """Warps and ranks come in powers of two."""
    with pytest.raises(OptionError, match=f"config.{field}: expected one of 1, 2, 4, 8.*, got 3"):
        Config(**({"warps": 2, "unroll": 1} | {field: 3}))


def test_batch_and_heads_are_no_part_of_the_kernel() -> None:
    """Another batch, head count, group count, pool or projection width compiles nothing new."""
    cases = [
        problem(),
        problem(B=3, H=12, G=2),
        problem(B=2, H=5, G=5),
        problem(B=16, H=16, G=1),
    ]
    config = registry.get("decode", "triton").default(cases[0], COMPILE_ONLY)
    hashes = set()
    for case in cases:
        positional, constants = arguments(make_call(case, 0), config)
        hashes.add(compile_kernel(decode_kernel, *positional, **constants).hash)
    assert len(hashes) == 1
    pools = [replace(case, pool=7) for case in cases[:2]]
    hashes = set()
    for case in pools:
        positional, constants = arguments(make_call(case, 0), config)
        hashes.add(compile_kernel(decode_kernel, *positional, **constants).hash)
    assert len(hashes) == 1
