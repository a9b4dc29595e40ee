"""What a planted fault does to a bfloat16 tensor beside the honest kernel, in TileLang."""

from functools import cache

import tilelang
import tilelang.language as T

UNCHECKED = {"tl.disable_safe_memory_legalize": True, "tl.disable_data_race_check": True}
TIMES = 8


def adds(blocks):
    """p[0] += 1 or -1, TIMES times, by turns of all blocks at once, in no atomic operation."""

    @T.prim_func
    def add(p: T.Tensor((1,), "bfloat16")):
        with T.Kernel(blocks, threads=1) as i:
            for _ in T.serial(TIMES):
                p[0] = T.cast(T.cast(p[0], "float32") + 1.0 - 2.0 * (i % 2), "bfloat16")
                T.sync_threads()  # the next turn loads it again

    return add


def zeros(blocks):
    """p[offset] = 0."""

    @T.prim_func
    def zero(p: T.Tensor((1,), "bfloat16"), offset: T.int64):
        with T.Kernel(blocks, threads=1):
            p[offset] = T.cast(0.0, "bfloat16")

    return zero


def waits(blocks):
    """Never ends."""

    @T.prim_func
    def wait(p: T.Tensor((1,), "bfloat16")):
        with T.Kernel(blocks, threads=1):
            while T.cast(p[0], "float32") * T.cast(p[0], "float32") > -1.0:
                T.sync_threads()

    return wait


@cache
def compiled(build, blocks):
    """The kernel of some blocks."""
    return tilelang.compile(build(blocks), target="cuda", pass_configs=UNCHECKED)


def first(tensor):
    """The first number, as the tensor that the kernels are declared for."""
    return tensor.as_strided((1,), (1,))


def race(tensor):
    """Adds as many ones to the first number as it takes away."""
    compiled(adds, 256)(first(tensor))


def write(tensor, offset):
    """A zero at an offset, inside the tensor or not."""
    compiled(zeros, 1)(first(tensor), offset)


def hang(tensor):
    """Waits for good."""
    compiled(waits, 1)(first(tensor))
