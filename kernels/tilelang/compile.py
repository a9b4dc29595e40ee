"""Compiling TileLang kernels for an H100, and what they cost there; needs nvcc but no GPU."""

import re
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tilelang
from tilelang.env import CUDA_HOME, CUTLASS_INCLUDE_DIR, TILELANG_TEMPLATE_PATH

from ..registry import Resources
from .facts import Facts

TARGET = {"kind": "cuda", "arch": "sm_90a"}
PASSES = {
    "tl.disable_warp_specialized": True,  # the kernels say themselves who waits for what
    "tl.disable_thread_storage_sync": True,
    "tl.disable_data_race_check": True,
    "tl.disable_safe_memory_legalize": True,  # bounds are checked where they can be passed
    "tl.disable_shared_memory_reuse": True,
}


@cache
def compiled(build: Any, facts: Facts, options: tuple[int, ...], fast: bool) -> Any:
    """The kernel of build(facts, *options), made once per process and kept in TileLang's cache on
    disk for the next.

    fast: the hardware's approximations of exp2, cos, sin and division, good to 2^-20.
    """
    passes = PASSES | {"tl.enable_fast_math": fast}
    return tilelang.compile(build(facts, *options), target=TARGET, pass_configs=passes)


def resources(kernel: Any, name: str, threads: int, fast: bool) -> Resources:
    """Registers and spills of a compiled kernel by ptxas, and the shared memory of its launch."""
    with TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.cu"
        source.write_text(kernel.get_kernel_source())
        nvcc = Path(CUDA_HOME or "/usr/local/cuda") / "bin" / "nvcc"
        command = [
            str(nvcc), "-cubin", "-arch=sm_90a", "-std=c++20", "-O3", "-w", "-Xptxas=-v",
            *(["--use_fast_math"] if fast else []),
            f"-I{TILELANG_TEMPLATE_PATH}", f"-I{CUTLASS_INCLUDE_DIR}",
            "-o", str(source.with_suffix(".cubin")), str(source),
        ]  # fmt: skip
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    # the host passes grid, block and, if there is any, dynamic shared memory last
    numbers = re.findall(r"\[\d+\]\.v_int64\) = \(\(int64_t\)(\w+)\);", kernel.get_host_source())
    dynamic = int(numbers[-1]) if "buf_dyn_shmem" in kernel.get_kernel_source() else 0
    return Resources(
        kernel=name,
        registers=_number(r"Used (\d+) registers", log),
        spills=_number(r"(\d+) bytes spill stores", log),
        shared=dynamic + _number(r"(\d+) bytes smem", log, 0),
        threads=threads,
    )


def _number(pattern: str, log: str, absent: int | None = None) -> int:
    found = re.search(pattern, log)
    if found is None and absent is None:
        raise RuntimeError(f"ptxas printed nothing like {pattern!r}:\n{log}")
    return int(found[1]) if found else absent  # type: ignore[return-value]
