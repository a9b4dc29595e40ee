"""Compiling TileLang kernels for an H100, and what they cost there; needs nvcc but no GPU."""

import re
import shutil
import subprocess
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tilelang
from tilelang.env import CUDA_HOME

from .. import toolchain
from ..registry import Resources
from .facts import Facts

RESERVED = 1024  # bytes of shared memory that CUDA keeps of each block, counted in SHARED
TARGET = {"kind": "cuda", "arch": "sm_90a"}
PASSES = {
    "tl.disable_warp_specialized": True,  # the kernels say themselves who waits for what
    "tl.disable_thread_storage_sync": True,
    "tl.disable_data_race_check": True,
    "tl.disable_safe_memory_legalize": True,  # bounds are checked where they can be passed
    "tl.disable_shared_memory_reuse": True,
}
# nvcc's middle end computes addresses again in every turn of a loop, for a thread to get by with
# the registers that its block starts with: a tenth of the instructions of scan's loops.
NO_REMATERIALISATION = "-disable-nvvm-remat"


def nvcc() -> str | None:
    """The compiler that TileLang calls."""
    return shutil.which("nvcc", path=f"{CUDA_HOME}/bin") if CUDA_HOME else None


def has_nvcc() -> bool:
    """Whether TileLang finds the compiler that it calls."""
    return nvcc() is not None


@cache
def flags() -> list[str]:
    """What nvcc is given: an option of its middle end that is not documented, if it has it."""
    compiler = nvcc()
    if compiler is None:
        return []
    line = [compiler, "--dryrun", "-x", "cu", "-cubin", "/dev/null"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    folder = re.search(r"^#\$ CICC_PATH=(.+)$", done.stderr, re.MULTILINE)
    cicc = Path(folder[1]) / "cicc" if folder else None
    if cicc is None or not cicc.exists():
        return []
    with cicc.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as code:
        known = code.find(NO_REMATERIALISATION.encode()) >= 0
    return ["-Xcicc", NO_REMATERIALISATION] if known else []


@cache
def compiled(build: Any, facts: Facts, options: tuple[int, ...], fast: bool) -> Any:
    """The kernel of build(facts, *options), made once per process and kept in TileLang's cache on
    disk for the next.

    fast: the hardware's approximations of exp2, cos, sin and division, good to 2^-20.
    """
    passes = PASSES | {"tl.enable_fast_math": fast, "tl.device_compile_flags": flags()}
    return tilelang.compile(build(facts, *options), target=TARGET, pass_configs=passes)


def resources(kernel: Any, name: str, threads: int) -> Resources:
    """Registers and spills of a compiled kernel by its own binary, and the shared memory of its
    launch."""
    with TemporaryDirectory() as folder:
        library = Path(folder) / "library.so"
        kernel.export_library(str(library))
        took = toolchain.usage(library)
    # the host passes grid, block and, if there is any, dynamic shared memory last
    numbers = re.findall(r"\[\d+\]\.v_int64\) = \(\(int64_t\)(\w+)\);", kernel.get_host_source())
    dynamic = int(numbers[-1]) if "extern __shared__" in kernel.get_kernel_source() else 0
    shared = dynamic + took["SHARED"] - RESERVED
    return Resources(name, took["REG"], took["STACK"], shared, threads)
