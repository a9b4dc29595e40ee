"""Small hard cases beside each timed problem: same dims per head, dtypes and options.

Kernels are specialised by the dims and dtypes that are kept; what is varied is what a kernel sees
at run time: length, batch, heads, state, packing, and the regime of the values.
"""

from dataclasses import dataclass, replace

import torch

from ..kernels.call import Call
from ..kernels.cases import REGIMES, Regime, make_call
from ..kernels.problem import Problem

RAGGED = 67  # one token chunk of 64 and 3 tokens more
CHUNKS = 197  # several chunks of 64 or 128 and a ragged one
PACKED = (5, 0, 67, 1)  # a sequence without tokens, and one of a single token


@dataclass(frozen=True, slots=True)
class HardCase:
    """A small problem, the values it is given, and whether one batch row is padding."""

    problem: Problem
    regime: Regime
    padding: bool = False

    def __str__(self) -> str:
        p = self.problem
        parts = [self.regime.replace("_", " "), f"B = {p.B}"]
        parts += [f"L = {p.L}"] if p.lengths is None else [f"lengths {list(p.lengths)}"]
        parts += ["with a state"] if p.has_state and p.op == "prefill" else []
        parts += [f"pool of {p.pool}"] if p.pool is not None else []
        parts += ["a padding row"] if self.padding else []
        return ", ".join(parts)

    def call(self, seed: int, device: torch.device) -> Call:
        """The call of this case."""
        call = make_call(self.problem, seed, device, self.regime)
        if self.padding:
            assert call.state_indices is not None
            call.state_indices[1] = -1
        return call


def hard_cases(problem: Problem) -> list[HardCase]:
    """The cases that go with a problem; two problems with equal lists share their verdicts."""
    per_group = min(problem.H // problem.G, 3)
    G = min(problem.G, 2)
    small = replace(problem, H=G * per_group, G=G, lengths=None, pool=None)
    if problem.op == "decode":
        rows = replace(small, B=3)
        return [
            *(HardCase(rows, regime) for regime in REGIMES),
            HardCase(replace(small, B=1), "typical"),
            HardCase(replace(rows, pool=5), "typical", padding=True),
        ]
    fresh, carried = replace(small, has_state=False), replace(small, has_state=True)
    return [
        HardCase(replace(carried, B=2, L=CHUNKS), "typical"),
        HardCase(replace(fresh, B=2, L=RAGGED), "strong_decay"),
        HardCase(replace(carried, B=2, L=RAGGED), "weak_decay"),
        HardCase(replace(fresh, B=1, L=CHUNKS), "large_angles"),
        HardCase(replace(fresh, B=3, L=1), "typical"),
        HardCase(replace(carried, B=1, L=1), "strong_decay"),
        HardCase(replace(carried, B=1, L=sum(PACKED), lengths=PACKED), "typical"),
        HardCase(replace(fresh, B=1, L=sum(PACKED), lengths=PACKED), "weak_decay"),
    ]


def rival_cases(problem: Problem) -> list[HardCase]:
    """The cases for other people's kernels, which may be 5 % off: their own problem only.

    A typical step adds less than that to a state, so a decode that forgets its token would pass. A
    case of large steps does not forgive it.
    """
    return [HardCase(problem, "large_angles")] if problem.op == "decode" else []
