"""What is here, what is missing, and how to get it."""

from importlib import metadata

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..kernels.toolchain import driver_version, nvcc_version, ptxas_version
from .hardware import cpu_name, environment
from .peers import FLA, FLASHINFER, MAMBA

REMEDIES = {
    "torch": "pip install torch",
    "triton": "pip install triton (a CUDA build of torch brings its own)",
    "tilelang": "pip install tilelang: MIMO prefill",
    "nvidia-cutlass-dsl": "pip install 'nvidia-cutlass-dsl[cu13]': decode in one launch",
    "nvidia-ml-py": "pip install nvidia-ml-py: clocks and throttling",
    MAMBA.package: f"{MAMBA.install}: the official kernels, as rivals",
    FLA.package: f"{FLA.install}: Gated DeltaNet, as a rival",
    FLASHINFER.package: f"{FLASHINFER.install}: Mamba-2 and Gated DeltaNet, as rivals",
}


def report(page: Console) -> int:
    """Print GPU, driver and packages with a remedy for each that is missing; returns 0."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for style in ("bold", "", "dim"):
        table.add_column(style=style or None, overflow="fold")
    for name, found, remedy in machine() + packages():
        table.add_row(name, escape(found), escape(remedy))
    page.print(table)
    return 0


def machine() -> list[tuple[str, str, str]]:
    """Name, finding and remedy: processor, driver, GPU, compiler."""
    rows = [("processor", cpu_name(), "")]
    driver = driver_version()
    no_driver = "" if driver else "install the NVIDIA driver; without one nothing is timed on a GPU"
    rows.append(("NVIDIA driver", driver or "none", no_driver))
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = environment(torch.device("cuda", index))
            size = (
                f"{found['memory_bytes'] / 2**30:.0f} GiB, L2 {found['l2_bytes'] / 2**20:.0f} MiB"
            )
            rows.append((f"GPU {index}", f"{found['gpu']}, {found['sm_count']} SMs, {size}", ""))
    elif driver and torch.version.cuda is None:
        rows.append(("GPU", "not usable", "this torch has no CUDA: install a CUDA build of torch"))
    else:
        remedy = "kernels are checked through their interpreter and compiled, but not timed"
        rows.append(("GPU", "none", remedy))
    rows.append(("CUDA of torch", torch.version.cuda or "none", ""))
    rows.append(("ptxas of triton", ptxas_version() or "none", ""))
    rows.append(("nvcc for tilelang", nvcc_version() or "none", ""))
    return rows


def packages() -> list[tuple[str, str, str]]:
    """Name, version and remedy of each package."""
    rows = []
    for name, remedy in REMEDIES.items():
        try:
            rows.append((name, metadata.version(name), ""))
        except metadata.PackageNotFoundError:
            rows.append((name, "missing", remedy))
    return rows
