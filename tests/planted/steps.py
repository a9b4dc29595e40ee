"""A small state update that two tuners get to tune: right but slow, or fast with a planted fault.

    h = a h + x,   y = h          h, x, y (ROWS, N), a (ROWS); h in place, float32

h lies in a larger pool: the rows after its own are another's. The right config is slow on purpose
(it has few programs, or reads its input again and again), so that each fault is faster.
"""

from dataclasses import dataclass

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS, N = (4093, 128) if DEVICE == "cuda" else (21, 16)
POOL = ROWS + 500
PROGRAMS = 1024 if DEVICE == "cuda" else 8
FAULTS = (
    *("zeros", "wrong_tail", "skipped_state", "race", "out_of_bounds", "clobbered_input"),
    *("illegal_access", "hang"),
)
OPS = {"triton": "decode", "tilelang": "prefill", "cute": "decode"}  # of the suite, in ours.py


@dataclass
class Tensors:
    """What a step reads and writes."""

    pool: torch.Tensor  # (POOL, N), the first ROWS are h
    x: torch.Tensor
    a: torch.Tensor
    y: torch.Tensor

    def args(self):
        """In the order of the kernels."""
        return self.pool, self.x, self.a, self.y


def tensors():
    """Fresh ones from a seed; y poisoned."""
    torch.manual_seed(0)
    pool, x = torch.randn(POOL, N, device=DEVICE), torch.randn(ROWS, N, device=DEVICE)
    a = torch.rand(ROWS, device=DEVICE)
    return Tensors(pool, x, a, torch.full_like(x, torch.nan))


def wrong(run):
    """What a run gets wrong on fresh tensors, in words; empty if nothing."""
    given, made = tensors(), tensors()
    run(made)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    h = given.a.double()[:, None] * given.pool[:ROWS].double() + given.x.double()
    found = {
        "y": torch.allclose(made.y.double(), h, atol=1e-5),
        "the state": torch.allclose(made.pool[:ROWS].double(), h, atol=1e-5),
        "another's rows": torch.equal(made.pool[ROWS:], given.pool[ROWS:]),
        "its input": torch.equal(made.x, given.x),
    }
    return ", ".join(name for name, right in found.items() if not right)
