"""A kernel of known duration, to hold the harness against: it waits on the GPU's own timer.

`%globaltimer` counts nanoseconds whatever the clocks are; it moves on in steps, which
`timer_step` measures: a wait is known to one step.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer

READINGS = 20_000
LONGEST = 1 << 62


@triton.jit(do_not_specialize=["nanoseconds", "place"])
def _spin(spent, nanoseconds, place):
    """spent_place = last reading - first reading, at least `nanoseconds`."""
    first = globaltimer()
    now = first
    while now - first < nanoseconds:
        now = globaltimer()
    tl.store(spent + place, now - first)


@triton.jit
def _least_step(least, readings, LONGEST: tl.constexpr):
    """The smallest difference, other than 0, between one reading and the next."""
    found = tl.full((), LONGEST, tl.int64)
    before = globaltimer()
    for _ in range(readings):
        now = globaltimer()
        step = now - before
        found = tl.where(step > 0, tl.minimum(found, step), found)
        before = now
    tl.store(least, found)


def spin(spent: Tensor, nanoseconds: int, place: int) -> None:
    """Queue a wait; spent: (places) int64, where the kernel writes how long it waited by itself."""
    _spin[(1,)](spent, nanoseconds, place, num_warps=1)


def timer_step(device: torch.device) -> int:
    """Nanoseconds by which the GPU's timer moves on at a time."""
    least = torch.zeros(1, dtype=torch.int64, device=device)
    _least_step[(1,)](least, READINGS, LONGEST, num_warps=1)
    return int(least.item())
