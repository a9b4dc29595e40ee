"""The kernel of known duration, as far as a compiler can tell."""

import os
import re

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter has no timer of a GPU", allow_module_level=True)

from mamba3_bench.kernels.triton import spin
from mamba3_bench.kernels.triton.compile import compile_kernel


def test_every_turn_reads_the_timer_again() -> None:
    """A reading that the compiler lifts out of the loop would hang the GPU, or wait for nothing."""
    spent = torch.empty(4, dtype=torch.int64, device="meta")
    text = compile_kernel(spin._spin, spent, 2000, 3, num_warps=1).asm["ptx"]
    assert text.count("%globaltimer") == 2  # before the loop, and in it
    loop = re.search(r"^(\$\w+):(?:(?!^\$).)*globaltimer(?:(?!^\$).)*bra\s+\1;", text, re.M | re.S)
    assert loop, text
