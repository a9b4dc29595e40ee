"""What a compiled kernel depends on beside its problem, and what it takes: by NVIDIA's tools."""

import ast
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

PACKAGES: dict[str, tuple[str, ...]] = {  # by backend: those that compile its kernels, or are them
    "torch": ("torch",),
    "triton": ("triton",),
    "tilelang": ("tilelang", "apache-tvm-ffi"),
    "cute": ("nvidia-cutlass-dsl",),
}
EM_CUDA = (190).to_bytes(2, "little")  # the machine of an ELF file with device code
COMPILERS: dict[str, tuple[str, ...]] = {  # by backend: those whose version can be asked for
    "triton": ("ptxas",),
    "tilelang": ("nvcc",),
}


def cache_folder() -> Path:
    """What is kept on disk between runs: MAMBA3_BENCH_CACHE, or the user's cache folder."""
    given = os.environ.get("MAMBA3_BENCH_CACHE")
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache_home / "mamba3-bench"


@cache
def fingerprint(backend: str, module: str) -> dict[str, str | None]:
    """What the machine code of a backend's kernel depends on here; it takes milliseconds, once."""
    versions = {}
    for package in packages_of(backend):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return made_with(backend, {"packages": versions, **compiler_versions()}, source_hash(module))


def packages_of(backend: str) -> tuple[str, ...]:
    """The packages that a backend's kernels depend on; of one that is not known, torch at least."""
    return PACKAGES.get(backend, ("torch",))


def made_with(backend: str, environment: Mapping[str, Any], source: str) -> dict[str, str | None]:
    """The fingerprint of a backend's kernel: what its machine code depends on, by name.

    Not the driver, which loads it, nor, of a DSL, torch, which allocates.
    environment: versions of compilers and `packages`; source: hash of the kernel's files.
    """
    versions = environment.get("packages") or {}
    tools = {name: environment.get(name) for name in COMPILERS.get(backend, ())}
    packages = {name: versions.get(name) for name in packages_of(backend)}
    return {**tools, **packages, "source": source}


def compiler_versions() -> dict[str, str | None]:
    """The version of each compiler that a backend calls; None for one that is not here."""
    return {"ptxas": ptxas_version(), "nvcc": nvcc_version()}


@cache
def source_hash(module: str) -> str:
    """A hash of a kernel's module and of what it imports from its own folder."""
    digest = hashlib.sha256()
    for path in sorted(kernel_files(module)):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def kernel_files(module: str) -> set[Path]:
    """A module and what it imports from its own folder, directly or not; empty for none."""
    spec = None
    with suppress(ImportError, ValueError):  # a module made from a file, or none
        spec = find_spec(module)
    if spec is None or spec.origin is None:
        return set()
    found: set[Path] = set()
    waiting = [Path(spec.origin)]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported(path)
    return found


def _imported(path: Path) -> Iterator[Path]:
    """The files beside a file that it imports relatively."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module.split(".")[0]] if node.module else [n.name for n in node.names]
            for name in names:
                beside = path.with_name(f"{name}.py")
                if beside.is_file():
                    yield beside


@cache
def ptxas_version() -> str | None:
    """Version of the assembler that Triton ships; None without Triton."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    return _version(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "ptxas")


@cache
def nvcc_version() -> str | None:
    """Version of the nvcc that TileLang calls, looked for where it looks; None without one."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return _version(Path(home) / "bin" / "nvcc")
    if on_path := shutil.which("nvcc"):
        return _version(Path(on_path))
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files("nvidia-cuda-nvcc") or []:
            if file.name == "nvcc":
                return _version(Path(str(file.locate())))
    return _version(Path("/usr/local/cuda/bin/nvcc"))


def _version(compiler: Path) -> str | None:
    """What a compiler of NVIDIA's says of itself; None if it cannot."""
    try:
        done = subprocess.run(
            [str(compiler), "--version"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"V(\d+(\.\d+)+)", done.stdout)
    return found[1] if found else None


def usage(library: Path) -> dict[str, int]:
    """What the kernel in a host library or object takes: REG, STACK, SHARED and others.

    By the cuobjdump that comes with Triton.

    REG: registers of a thread. STACK: bytes of a thread in local memory, spills among them.
    SHARED: bytes of a block, without those that a launch asks for.
    """
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise ImportError("cuobjdump comes with Triton, which is not installed")
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(device_code(library.read_bytes()))
        cubin.flush()
        line = [str(tool), "--dump-resource-usage", cubin.name]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
    return {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", done.stdout)}


def device_code(library: bytes) -> bytes:
    """The first cubin in a host library or object, from its header on: an ELF file for EM_CUDA."""
    for header in re.finditer(rb"\x7fELF", library):
        if library[header.start() + 18 : header.start() + 20] == EM_CUDA:
            return library[header.start() :]
    raise ValueError("there is no device code in this library")


@cache
def driver_version() -> str | None:
    """Version of the NVIDIA driver; None without one."""
    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            return str(pynvml.nvmlSystemGetDriverVersion())
    return None
