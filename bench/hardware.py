"""What machine and software this is: read, never set. The host's name is not recorded."""

import hashlib
import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..kernels.registry import MODULES
from ..kernels.toolchain import COMPILERS, compiler_versions, driver_version, packages_of

PACKAGES = (
    "torch",
    "triton",
    "tilelang",
    "nvidia-cutlass-dsl",
    "apache-tvm-ffi",
    "numpy",
    "mamba-ssm",
    "flash-linear-attention",
    "fla-core",
    "flashinfer-python",
)
SOURCES = {"mamba-ssm": "mamba_ssm", "fla-core": "fla", "flashinfer-python": "flashinfer"}
# The part of an environment that a time or a compiled kernel depends on: another value of one of
# these is another measurement.
IDENTITY = (
    "device", "gpu", "driver", "cuda", "ptxas", "nvcc", "python", "packages", "interpreted",
)  # fmt: skip


def environment(device: torch.device, *, interpreted: bool = False) -> dict[str, Any]:
    """GPU or CPU, driver, toolchain, packages and source state, as plain values."""
    found: dict[str, Any] = {
        "device": device.type,
        "gpu": None,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        **compiler_versions(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "version": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "interpreted": interpreted,
        **source_state(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "gpu_uuid": str(properties.uuid),
            "compute_capability": f"{properties.major}.{properties.minor}",
            "sm_count": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            "shared_per_block": getattr(properties, "shared_memory_per_block_optin", None),
        }
    return found


def identity(found: dict[str, Any], op: str = "", backend: str = "") -> dict[str, Any]:
    """The part of an environment that a record's key depends on.

    For a backend of ours, of compilers and packages those that it runs on: another DSL may come or
    go. What others run on is not known, so all count.
    """
    part = {name: found.get(name) for name in IDENTITY}
    if (op, backend) in MODULES:
        for compiler in set().union(*COMPILERS.values()) - {*COMPILERS.get(backend, ())}:
            del part[compiler]
        runs_on = ("torch", *packages_of(backend))
        versions = found.get("packages") or {}
        part["packages"] = {name: versions[name] for name in runs_on if name in versions}
    return (
        part if part["gpu"] else part | {"cpu": found.get("cpu"), "threads": found.get("threads")}
    )


@cache
def package_versions() -> dict[str, str]:
    """Installed version of each package that matters to a result.

    A library's source tree found before its package, or without one, is told by its hash.
    """
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    for name, module in SOURCES.items():
        spec = find_spec(module)
        if spec is not None and spec.origin is not None:
            root = Path(spec.origin).parent
            if name not in versions or not _installed(name, root):
                versions[name] = f"source {_tree_hash(root)}"
    return versions


def _installed(package: str, root: Path) -> bool:
    """Whether a module's folder lies where its package was installed."""
    site = Path(str(metadata.distribution(package).locate_file(""))).resolve()
    return root.resolve().is_relative_to(site)


def _tree_hash(root: Path) -> str:
    """A short hash of a tree's Python files."""
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def source_state() -> dict[str, Any]:
    """Commit of the source tree and whether it has changes; both None for an installed package.

    A copy of a tree without its repository is told by the variable MAMBA3_BENCH_COMMIT.
    """
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root)]
    if not _output([*git, "ls-files", "--error-unmatch", str(Path(__file__).resolve())]):
        return {"commit": os.environ.get("MAMBA3_BENCH_COMMIT"), "dirty": None}
    commit = (_output([*git, "rev-parse", "HEAD"]) or "").strip()
    return {"commit": commit or None, "dirty": bool(_output([*git, "status", "--porcelain"]))}


@cache
def cpu_name() -> str:
    """The processor's model name."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1]
    return platform.machine()


def _output(command: list[str]) -> str | None:
    """What a command prints; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
