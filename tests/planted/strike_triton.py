"""What a planted fault does to a bfloat16 tensor beside the honest kernel, in Triton."""

import triton
import triton.language as tl


@triton.jit
def add(p, offset, by, TIMES: tl.constexpr):
    """p[offset] += by, TIMES times, by all programs at once and without an atomic operation."""
    for _ in range(TIMES):
        value = tl.load(p + offset, volatile=True).to(tl.float32) + by
        tl.store(p + offset, value.to(p.dtype.element_ty))


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
    """Changes the first number and changes it back."""
    for by in (1.0, -1.0):
        add[(256,)](tensor, 0, by, 8)


def write(tensor, offset):
    """A zero at an offset, inside the tensor or not."""
    zero[(1,)](tensor, offset)


def hang(tensor):
    """Waits for good."""
    wait[(1,)](tensor)
