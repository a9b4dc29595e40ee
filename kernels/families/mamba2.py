"""Mamba-2 (arXiv 2405.21060): the SSM of its layer, between the convolution and the projection.

D_t = softplus(dt_t + dt_bias)
h_t = exp(A D_t) h_{t-1} + D_t x_t b_t^T
y_t = (h_t c_t + d x_t) silu(z_t)
"""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ...reference import mamba2
from ..draws import Draws
from ..family import Family
from ..plain import (
    AXES,
    PlainCall,
    PlainProblem,
    Spec,
    bound_to,
    hard_cases,
    make_call,
    rival_cases,
)
from ..problem import CHUNK_COLUMNS
from ..registry import Config, implements

REGIMES = ("typical", "strong_decay", "weak_decay")
# mean of the raw step size; decay of the heads: A in -1 to -16 typically, as the layer begins
STEPS = {"typical": -4.0, "strong_decay": 1.0, "weak_decay": -4.0}
DECAYS = {"typical": (1.0, 16.0), "strong_decay": (1.0, 16.0), "weak_decay": (1e-4, 1e-3)}


class Problem(PlainProblem):
    """One prefill or decode step of Mamba-2."""

    __slots__ = ()
    SPECS: ClassVar = (
        Spec("x", "B L H P"),
        Spec("z", "B L H P"),
        Spec("b", "B L G N"),
        Spec("c", "B L G N"),
        Spec("dt", "B L H"),
        Spec("decay", "H", "param"),
        Spec("dt_bias", "H", "param"),
        Spec("d", "H", "param"),
        Spec("h", "B H P N", "state"),
    )

    @property
    def flops(self) -> int:
        """Those of the chunked form, or of the recurrence for a decode step."""
        if self.decodes:  # decay, outer product, read-out
            return self.B * self.H * self.P * self.N * (1 + 2 + 2)
        per_row = 2 * (CHUNK_COLUMNS * (self.N + self.P) + 2 * self.N * self.P)
        return self.B * self.L * self.H * per_row


def draw(name: str, draws: Draws, shape: tuple[int, ...], regime: str) -> Tensor:
    """Standard normal numbers, but for step sizes, decays and parameters."""
    if name == "decay":
        low, high = DECAYS[regime]
        return -(low + (high - low) * draws.uniform(*shape))
    value = draws.normal(*shape)
    match name:
        case "dt":
            return value + STEPS[regime]
        case "dt_bias" | "h":
            return 0.5 * value
        case "d":
            return 1 + 0.3 * value
    return value


def supports(problem: Problem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("mamba2.decode", "reference", supports=supports)
@implements("mamba2.prefill", "reference", supports=supports)
def reference(call: PlainCall, config: Config) -> None:
    """Run the float64 recurrence."""
    y, h = mamba2.prefill(**call.sequence(), h=None if call.state is None else call.state["h"])
    call.store(y, h=h)


FAMILY = Family(
    "Mamba-2",
    AXES,
    bound_to(Problem),
    partial(make_call, draw),
    partial(hard_cases, REGIMES),
    partial(rival_cases, "strong_decay"),
)
