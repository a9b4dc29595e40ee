"""Rounding of matrix-product operands, as tensor cores do it, in ordinary float32 arithmetic.

An operand is rounded to a narrow dtype, converted back, and multiplied in float32. A product of two
rounded operands is exact there, so a CPU and a GPU differ only in the order of their sums.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..problem import Problem

Rounding = Callable[[Tensor], Tensor]


def wide(dtype: torch.dtype) -> torch.dtype:
    """What activations, sums and the state are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def operand_rounding(problem: Problem) -> Rounding:
    """How an operand of a matrix product is rounded: to the activations' dtype, or to tf32."""
    if problem.options.matmul == "tf32":
        return lambda v: straight_through(v, to_tf32)
    return rounding_to(problem.dtype)


def rounding_to(dtype: torch.dtype) -> Rounding:
    """Rounding to a dtype and back; nothing for float32 and float64."""
    if dtype == wide(dtype):
        return lambda v: v
    return lambda v: straight_through(v, lambda v: v.to(dtype).to(v.dtype))


def to_tf32(v: Tensor) -> Tensor:
    """Round float32 to 10 explicit mantissa bits, to nearest with ties away (PTX cvt.rna.tf32)."""
    dropped = 13  # of 23 mantissa bits
    bits = v.view(torch.int32) + (1 << (dropped - 1))
    return torch.where(v.isfinite(), (bits & -(1 << dropped)).view(torch.float32), v)


def straight_through(v: Tensor, rounding: Rounding) -> Tensor:
    """Round on the way forward; the gradient passes in full precision."""
    rounded: Tensor = _StraightThrough.apply(v, rounding)  # type: ignore[no-untyped-call]
    return rounded


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, rounding: Rounding) -> Tensor:
        return rounding(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_MATMULS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)
_lock = threading.Lock()
_inside = 0  # threads in full_float32 now; the first saves the settings, the last restores them
_saved: dict[Any, str] = {}


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep float32 matrix products in float32: no TF32 on a GPU, no bfloat16 on a CPU, no autocast.

    The settings are the process's own: another thread's products are full float32 meanwhile too.
    """
    global _inside
    with _lock:
        _inside += 1
        for matmul in _MATMULS:
            if matmul.fp32_precision not in ("none", "ieee"):
                _saved[matmul] = matmul.fp32_precision
                matmul.fp32_precision = "ieee"
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        with _lock:
            _inside -= 1
            while _inside == 0 and _saved:
                matmul, precision = _saved.popitem()
                matmul.fp32_precision = precision
