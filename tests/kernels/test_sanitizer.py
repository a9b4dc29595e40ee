"""The decode kernels under NVIDIA's compute-sanitizer, on problems of every kind.

`pytest -m gpu tests/kernels/test_sanitizer.py`, with compute-sanitizer on PATH or in CUDA_HOME.
memcheck finds accesses out of bounds and misaligned ones, racecheck hazards in shared memory,
initcheck reads of device memory that nobody wrote.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Sanitized programs are slow: two small launches for each kind of kernel, and no others. What is
# drawn on the CPU and copied is known to initcheck; what PyTorch's kernels write is not.
PROGRAM = """
import sys
import torch
from mamba3_bench.kernels import registry
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.ops import decode_call
from mamba3_bench.kernels.problem import OPTIONAL, Options, Problem

backend = sys.argv[1]
if (reason := registry.unavailable("decode", backend)) is not None:
    print("unavailable:", reason)
    sys.exit(0)
implementation = registry.get("decode", backend)
siso = tuple(name for name in OPTIONAL if not name.startswith("mimo"))
plain = tuple(name for name in OPTIONAL if name != "out_norm")
bare = Options(norm="normalised", pairing="half")
bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
for P, N, R, dtype, state_dtype, optional, options in (
    (64, 128, 1, bf16, fp32, siso, Options()),
    (32, 32, 1, fp32, fp32, (), bare),
    (64, 64, 2, bf16, bf16, OPTIONAL, Options()),
    (64, 128, 4, bf16, bf16, plain, Options(pairing="half")),
    (64, 64, 8, fp16, fp16, OPTIONAL, Options()),
    (32, 32, 8, bf16, fp32, tuple(n for n in plain if n != "mimo_o"), Options()),
):
    for B, pool in ((3, 5), (2, None)):
        problem = Problem(
            "decode", B, 1, 6, 2, P, N, R, N // 4, dtype, state_dtype, options, optional,
            has_state=True, pool=pool,
        )
        drawn = make_call(problem, 0)
        indices = drawn.state_indices
        if pool is not None:
            indices[1] = -1
            indices = indices.to("cuda")
        groups = (drawn.inputs, drawn.params, drawn.state)
        call = decode_call(*(group.to("cuda") for group in groups), indices, options)
        implementation.run(call, implementation.default(problem, call.y.device))
    torch.cuda.synchronize()
print("ran")
"""
KERNELS = {"cute": "kns=kernel_cutlass", "triton": "kns=decode_kernel"}
# Loading a driver library asks it for functions of other versions: such answers are no faults.
# Of a barrier's initialisation and first arrival, which one thread does one after the other,
# racecheck warns if they are predicated and not branched to; a hazard is an error.
OPTIONS = {
    "memcheck": ["--report-api-errors", "no"],
    "racecheck": ["--racecheck-detect-level", "error"],
    "initcheck": [],
}


def sanitizer() -> str | None:
    """Where compute-sanitizer is."""
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=str(home))


@pytest.mark.gpu
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
@pytest.mark.parametrize("backend", ["cute", "triton"])
def test_nothing_is_found(backend: str, tool: str) -> None:
    """No error and no hazard in any launch, padding rows and pools included."""
    command = sanitizer()
    if command is None:
        pytest.skip("needs compute-sanitizer, on PATH or in CUDA_HOME")
    # without its caching allocator, PyTorch's tensors end where they end
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [command, "--tool", tool, *OPTIONS[tool], "--kernel-name", KERNELS[backend],
         "--error-exitcode", "9", sys.executable, "-c", PROGRAM, backend],
        env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if "unavailable:" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "ran" in done.stdout
    assert "0 errors" in done.stdout or "0 hazards" in done.stdout, done.stdout[-2000:]
