"""What a planted fault does to a bfloat16 tensor beside the honest kernel, in the CuTe DSL."""

from functools import cache

import torch
from cutlass import BFloat16, Float32, Int32, Int64, cute
from cutlass.cute import arch

from mamba3_bench.kernels.cute import compile
from mamba3_bench.kernels.cute.memory import at, put

TIMES = 8


@cute.kernel
def add_kernel(p: cute.Pointer):
    """p[0] += 1 or -1, TIMES times, by turns of all blocks at once, in no atomic operation."""
    by = Float32(1.0) - Float32(2 * (arch.block_idx()[0] % 2))
    for _ in range(TIMES):
        put(p, 0, Float32(at(p, 0)) + by)
        arch.sync_threads()  # the next turn loads it again


@cute.kernel
def zero_kernel(p: cute.Pointer, offset: Int64):
    """p[offset] = 0."""
    put(p, offset, Float32(0.0))


@cute.kernel
def wait_kernel(p: cute.Pointer):
    """Never ends."""
    going = Int32(1)
    while going > 0:
        arch.sync_threads()
        going = Int32(Float32(at(p, 0)) * Float32(at(p, 0)) > -1.0)


def pointer(address):
    """A device pointer to bfloat16."""
    return cute.make_ptr(BFloat16, address, cute.AddressSpace.gmem, assumed_align=2)


@cute.jit
def add(address: Int64, stream):
    """Of 256 blocks."""
    add_kernel(pointer(address)).launch(grid=[256, 1, 1], block=[32, 1, 1], stream=stream)


@cute.jit
def zero(address: Int64, offset: Int64, stream):
    """Of one thread."""
    zero_kernel(pointer(address), offset).launch(grid=[1, 1, 1], block=[1, 1, 1], stream=stream)


@cute.jit
def wait(address: Int64, stream):
    """Of one thread."""
    wait_kernel(pointer(address)).launch(grid=[1, 1, 1], block=[1, 1, 1], stream=stream)


@cache
def compiled(function, *arguments):
    """A host function for arguments of these types, on this GPU."""
    return compile.host_function(function, *(kind(16) for kind in arguments))


def launch(function, tensor, *arguments):
    """On the current stream; arguments: pairs of a type and a value."""
    host = compiled(function, Int64, *(kind for kind, _ in arguments))
    stream = torch.cuda.current_stream(tensor.device).cuda_stream
    host(tensor.data_ptr(), *(value for _, value in arguments), stream)


def race(tensor):
    """Adds as many ones to the first number as it takes away."""
    launch(add, tensor)


def write(tensor, offset):
    """A zero at an offset, inside the tensor or not."""
    launch(zero, tensor, (Int64, offset))


def hang(tensor):
    """Waits for good."""
    launch(wait, tensor)
