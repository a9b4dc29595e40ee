"""What a compiled kernel is specialised for: everything about a problem but B, L, H and G."""

from dataclasses import dataclass

import torch

from ..problem import Options, Problem, dtype_name

COLUMNS = 64  # (token, rank) columns of a chunk: the rows of one wgmma


@dataclass(frozen=True, slots=True)
class Facts:
    """The static dims, dtypes and options of a problem; the rest is known at run time."""

    P: int
    N: int
    R: int
    S: int
    dtype: str
    state_dtype: str
    options: Options
    optional: tuple[str, ...]

    @property
    def C(self) -> int:
        """Tokens of a chunk."""
        return COLUMNS // self.R

    @property
    def pairs(self) -> int:
        """Pairs that are rotated of each eight positions (`order.py`)."""
        return 8 * self.S // self.N

    @property
    def rows(self) -> int:
        """Rows of h in a block: P, or the 64 rows that a warp group multiplies at least."""
        return max(self.P, 64)

    @property
    def multipliers(self) -> int:
        """Threads that multiply: one warp group for 64 rows of h."""
        return 2 * self.rows

    @property
    def half(self) -> bool:
        """Whether pairs are (i, i + N/2), not (2i, 2i + 1)."""
        return self.options.pairing == "half"

    @property
    def reduced(self) -> bool:
        """Whether y is summed over the ranks."""
        return self.R == 1 or "mimo_o" in self.optional


def facts_of(problem: Problem) -> Facts:
    """The facts of a problem; equal facts share their compiled kernels."""
    p = problem
    return Facts(
        p.P, p.N, p.R, p.S, dtype_name(p.dtype), dtype_name(p.state_dtype), p.options, p.optional
    )


def torch_dtype(name: str) -> torch.dtype:
    """torch.bfloat16 for `bfloat16`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
