"""Gated DeltaNet (arXiv 2412.06464): the delta rule of its layer, after the convolutions.

k_t, q_t normalised over N, q_t also by 1 / sqrt(N)
alpha_t = exp(A softplus(a_t + dt_bias))    beta_t = sigmoid(b_t)
h_t = alpha_t h_{t-1} + beta_t (v_t - alpha_t h_{t-1} k_t) k_t^T
y_t = h_t q_t
"""

from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from ...reference import gated_deltanet
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
STEPS = {"typical": -4.0, "strong_decay": 0.0, "weak_decay": -9.0}  # mean of the raw decay


class Problem(PlainProblem):
    """One prefill or decode step of Gated DeltaNet; H heads of v, G heads of q and k."""

    __slots__ = ()
    SPECS: ClassVar = (
        Spec("q", "B L G N"),
        Spec("k", "B L G N"),
        Spec("v", "B L H P"),
        Spec("a", "B L H"),
        Spec("b", "B L H"),
        Spec("decay", "H", "param"),
        Spec("dt_bias", "H", "param"),
        Spec("h", "B H P N", "state"),
    )

    @property
    def flops(self) -> int:
        """Those of the chunked (WY) form, or of the recurrence for a decode step.

        Chunk of C tokens, per token: k k^T, its inverse applied to k and v, q k^T and its product
        with the new values (C columns each); three products with the state.
        """
        rows, NP = self.B * self.H, self.N * self.P
        if self.decodes:  # decay, what the state holds of k, outer product, read-out
            return rows * NP * (1 + 2 + 2 + 2)
        C = CHUNK_COLUMNS
        return rows * self.L * 2 * (C * (3 * self.N + 2 * self.P) + 3 * NP)


def draw(name: str, draws: Draws, shape: tuple[int, ...], regime: str) -> Tensor:
    """Standard normal numbers, but for decays and parameters."""
    if name == "decay":
        return -(1 + 15 * draws.uniform(*shape))
    value = draws.normal(*shape)
    if name == "a":
        return value + STEPS[regime]
    return 0.5 * value if name in ("dt_bias", "h") else value


def supports(problem: Problem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("gdn.decode", "reference", supports=supports)
@implements("gdn.prefill", "reference", supports=supports)
def reference(call: PlainCall, config: Config) -> None:
    """Run the float64 recurrence."""
    h = None if call.state is None else call.state["h"]
    y, h = gated_deltanet.prefill(**call.sequence(), h=h)
    call.store(y, h=h)


FAMILY = Family(
    "Gated DeltaNet",
    AXES,
    bound_to(Problem),
    partial(make_call, draw),
    partial(hard_cases, REGIMES),
    partial(rival_cases, "strong_decay"),
)
