"""Compiling CuTe kernels, and what they cost on an H100, found where there may be no GPU."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

from cutlass import cute
from cutlass.cute.runtime import make_fake_stream

from .. import toolchain
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
    """Registers and spills of a kernel for sm_90a.

    The cubin does not know its shared memory: that is a launch argument.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = f"--gpu-arch=sm_90a --keep-cubin --dump-dir={folder}"
        host_function(kernel, *arguments, options=options)
        (cubin,) = Path(folder).glob("*.cubin")
        took = toolchain.usage(cubin)
    # the function's own name is the mangled types of all its arguments
    return Resources(type(kernel).__name__, took["REG"], took["STACK"], shared, threads)
