"""The tensors of a call: inputs, parameters and state, as plain frozen dataclasses.

Their shapes only make sense together, so `check.py` validates a whole call. A decode call has the
same
inputs without the dim L. Dims are those of `problem.py`.
"""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor


class Tensors:
    """What the dataclasses below share: walking and mapping the tensors present."""

    __slots__ = ()

    def every(self) -> tuple[Tensor | None, ...]:
        """Every field in order; written out, because each eager call asks for them."""
        raise NotImplementedError

    def items(self) -> list[tuple[str, Tensor]]:
        """Name and tensor of each tensor that is not None."""
        names = [field.name for field in fields(self)]  # type: ignore[arg-type]
        pairs = zip(names, self.every(), strict=True)
        return [(name, tensor) for name, tensor in pairs if tensor is not None]

    def map(self, function: Any) -> Self:
        """The same dataclass with function(name, tensor) in place of each tensor present."""
        return type(self)(**{name: function(name, tensor) for name, tensor in self.items()})

    def to(self, device: torch.device | str) -> Self:
        """The same tensors on another device; a view with gaps arrives packed."""
        return self.map(lambda _, tensor: tensor.to(device))


@dataclass(frozen=True, slots=True)
class Inputs(Tensors):
    """The slices of the layer's input projection, one dtype for all.

    Each may be a view into a wider projection output: the dims after L (after B in decode) are
    packed,
    and the batch stride is L times the token stride.
    """

    x: Tensor  # (B, L, H, P)
    b: Tensor  # (B, L, R, G, N)
    c: Tensor  # (B, L, R, G, N)
    dt: Tensor  # (B, L, H)
    a: Tensor  # (B, L, H)
    lam: Tensor  # (B, L, H)
    theta: Tensor  # (B, L, S) or (B, L, H, S)
    z: Tensor | None = None  # (B, L, H, P)

    def every(self) -> tuple[Tensor | None, ...]:
        return self.x, self.b, self.c, self.dt, self.a, self.lam, self.theta, self.z


@dataclass(frozen=True, slots=True)
class Params(Tensors):
    """The layer's parameters, float32 and contiguous; an absent one means the identity."""

    dt_bias: Tensor | None = None  # (H)
    b_norm: Tensor | None = None  # (N)
    c_norm: Tensor | None = None  # (N)
    b_bias: Tensor | None = None  # (H, R, N)
    c_bias: Tensor | None = None  # (H, R, N)
    d: Tensor | None = None  # (H)
    mimo_x: Tensor | None = None  # (H, R, P)
    mimo_z: Tensor | None = None  # (H, R, P)
    mimo_o: Tensor | None = None  # (H, R, P)
    out_norm: Tensor | None = None  # (H, P)

    def every(self) -> tuple[Tensor | None, ...]:
        return (
            self.dt_bias, self.b_norm, self.c_norm, self.b_bias, self.c_bias, self.d,
            self.mimo_x, self.mimo_z, self.mimo_o, self.out_norm,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class State(Tensors):
    """What prefill hands to prefill or decode, contiguous; B counts sequences or pool rows."""

    phi: Tensor  # (B, H, S) float32, accumulated angles in [0, 2 pi)
    h: Tensor  # (B, H, P, N) float32, bfloat16 or float16
    k: Tensor  # (B, R, H, N) activations' dtype, last key after bias and rotation
    x: Tensor  # (B, H, P) activations' dtype, last input before mimo_x

    def every(self) -> tuple[Tensor, ...]:
        return self.phi, self.h, self.k, self.x
