"""Compiling without a GPU: the figures are those of the launch that would run."""

import os

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton.language as tl  # noqa: E402

from mamba3_bench.kernels.triton.compile import compile_kernel, resources  # noqa: E402


@triton.jit(do_not_specialize=["rows"])
def row_sums(x, y, rows, N: tl.constexpr, M: tl.constexpr):
    """y_i = sum of row i over N columns, M rows in one program."""
    o = tl.arange(0, M)[:, None] * N + tl.arange(0, N)
    b = tl.load(x + o)
    first = tl.sum(b, 1)
    tl.debug_barrier()
    # every element is used again after the sum, so all of them stay in registers
    tl.store(y + o, b * first[:, None], mask=tl.arange(0, M)[:, None] < rows)


def arguments(dtype=torch.float32):
    """The tensors and the one run-time integer of a launch."""
    return torch.empty(64, 128, dtype=dtype, device="meta"), torch.empty(64, 128, device="meta"), 64


def test_small_block_does_not_spill():
    """32 values a thread fit, and a larger block takes more registers."""
    small = resources(row_sums, *arguments(), N=128, M=32, num_warps=4)
    large = resources(row_sums, *arguments(), N=128, M=64, num_warps=4)
    assert small.kernel == "row_sums"
    assert small.threads == 128
    assert small.spills == 0
    assert 32 < small.registers < large.registers <= 255


def test_too_large_block_spills():
    """256 float32 values a thread are more than the 255 registers there are."""
    assert resources(row_sums, *arguments(), N=128, M=64, num_warps=1).spills > 0


def test_specialised_as_the_launch():
    """Aligned pointers give 16-byte loads, and a pointer off by 2 bytes does not."""
    x, y, rows = arguments(torch.bfloat16)
    aligned = compile_kernel(row_sums, x, y, rows, N=128, M=32).asm["ptx"]
    odd = torch.empty(64 * 128 + 1, dtype=torch.bfloat16)[1:].view(64, 128)
    unaligned = compile_kernel(row_sums, odd, y, rows, N=128, M=32).asm["ptx"]
    assert "ld.global.v4.b32" in aligned
    assert "ld.global.v4.b32" not in unaligned
