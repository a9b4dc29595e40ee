"""What a planted fault does to a bfloat16 tensor beside the honest kernel, in Triton."""

import triton
import triton.language as tl


@triton.jit
def add(p, TIMES: tl.constexpr):
    """p[0] += 1 or -1, by turns of all programs at once, and without an atomic operation."""
    by = 1.0 - 2.0 * (tl.program_id(0) % 2)
    for _ in range(TIMES):
        value = tl.load(p, volatile=True).to(tl.float32) + by
        tl.store(p, value.to(p.dtype.element_ty))


@triton.jit
def zero(p, offset):
    """p[offset] = 0."""
    tl.store(p + offset, 0.0)


@triton.jit
def wait(p):
    """Never ends."""
    while tl.load(p, volatile=True) == tl.load(p, volatile=True):
        pass


def race(tensor):
    """Adds as many ones to the first number as it takes away."""
    add[(256,)](tensor, 8)


def write(tensor, offset):
    """A zero at an offset, inside the tensor or not."""
    zero[(1,)](tensor, offset)


def hang(tensor):
    """Waits for good."""
    wait[(1,)](tensor)
