"""Compiling CuTe kernels, also for a GPU that is not here, and keeping them on disk."""

import hashlib
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from cutlass import cute
from cutlass.cute.runtime import load_module, make_fake_stream

from .. import pointers, toolchain
from ..registry import Resources
from ..toolchain import PACKAGES

H100 = "sm_90a"
SYMBOL = "launch"


def host_function(kernel: Any, *arguments: Any, options: str = "") -> Any:
    """Compile a jitted host function, called with the same arguments and a raw stream last."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return cute.compile(
            kernel, *arguments, make_fake_stream(), options=f"--enable-tvm-ffi {options}"
        )


def kept(kernel: Any, module: str, name: tuple[Any, ...], target: str, *arguments: Any) -> Path:
    """The object file of a jitted host function, made once and kept on disk.

    module: the one that makes the kernel and its arguments. name: what tells the kernel from others
    of that module, by its repr. target: as `target_of`.
    """
    path = toolchain.cache_folder() / "cute" / f"{_digest(module, name, target)}.o"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        function = host_function(kernel, *arguments, options=f"--gpu-arch={target}")
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / path.name
            function.export_to_c(str(made), SYMBOL)
            made.replace(path)  # at once: another process sees all of it or nothing
    return path


def loaded(path: Path) -> Any:
    """The host function in an object file, without a wrapper for keywords."""
    return getattr(load_module(str(path), enable_tvm_ffi=True), SYMBOL)


def target_of(device: torch.device) -> str:
    """What to compile for: a GPU with all that only its kind has."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}a"


def _digest(module: str, name: tuple[Any, ...], target: str) -> str:
    """A hash of everything that the compiled code depends on."""
    made_by = (*map(metadata.version, PACKAGES["cute"]), metadata.version("apache-tvm-ffi"))
    # the device code, and the order of its arguments
    sources = [toolchain.source_hash(one) for one in (module, pointers.__name__)]
    told = repr((name, target, made_by, sources))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def ptx(kernel: Any, *arguments: Any) -> str:
    """The PTX of a kernel for sm_90a."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch={H100} --keep-ptx --dump-dir={folder}"
        host_function(kernel, *arguments, options=options)
        (found,) = Path(folder).glob("*.ptx")
        return found.read_text()


def resources(path: Path, name: str, shared: int, threads: int) -> Resources:
    """Registers and spills of the kernel in an object file.

    Its shared memory is a launch argument. In the file it is called by the mangled types of all
    its arguments: `name` is what to call it.
    """
    took = toolchain.usage(path)
    return Resources(name, took["REG"], took["STACK"], shared, threads)
