"""Compiling CuTe kernels, and what they cost on an H100, found where there may be no GPU."""

import re
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

from cutlass import cute
from cutlass.cute.runtime import make_fake_stream

from ..registry import Resources


def host_function(kernel: Any, *arguments: Any, options: str = "") -> Any:
    """Compile a jitted host function, called with the same arguments and a raw stream last."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return cute.compile(
            kernel, *arguments, make_fake_stream(), options=f"--enable-tvm-ffi {options}"
        )


def direct(function: Any) -> Any:
    """A compiled host function without its wrapper for keywords, which takes 1 us of each call."""
    inner = getattr(function, "__tvm_ffi_object__", None)
    return function if inner is None else inner()


def ptx(kernel: Any, *arguments: Any) -> str:
    """The PTX of a kernel for sm_90a."""
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch=sm_90a --keep-ptx --dump-dir={folder}"
        host_function(kernel, *arguments, options=options)
        (found,) = Path(folder).glob("*.ptx")
        return found.read_text()


def resources(kernel: Any, shared: int, threads: int, *arguments: Any) -> Resources:
    """Registers and spills of a kernel for sm_90a, by cuobjdump.

    The cubin does not know its shared memory: that is a launch argument.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch=sm_90a --keep-cubin --dump-dir={folder}"
        host_function(kernel, *arguments, options=options)
        (cubin,) = Path(folder).glob("*.cubin")
        text = subprocess.run(
            [cuobjdump(), "--dump-resource-usage", cubin],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    (found,) = re.findall(r"Function \w+:\s+REG:(\d+) STACK:(\d+)", text)
    registers, stack = found
    # the function's own name is the mangled types of all its arguments
    return Resources(type(kernel).__name__, int(registers), int(stack), shared, threads)


def cuobjdump() -> str:
    """The cuobjdump that comes with Triton."""
    import triton.backends.nvidia

    return str(Path(triton.backends.nvidia.__path__[0]) / "bin" / "cuobjdump")
