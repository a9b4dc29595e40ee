"""Mamba-3: its problems from axes, and the small hard cases beside each timed problem.

Kernels are specialised by the dims and dtypes that hard cases keep; what is varied is what a kernel
sees at run time: length, batch, heads, state, packing, and the regime of the values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..call import Call
from ..cases import make_call
from ..errors import OptionError
from ..family import DTYPES, Family, HardCase
from ..problem import OPTIONAL, Options, Problem

AXES = (
    *("dtype", "state_dtype", "state", "rank", "heads", "head_size", "groups", "angles", "pairing"),
    *("decay", "step", "norm", "initial_state", "batch", "length"),
)
MIMO = ("mimo_x", "mimo_z", "mimo_o")
RAGGED = 67  # one token chunk of 64 and 3 tokens more
CHUNKS = 197  # several chunks of 64 or 128 and a ragged one
FAINT = 2.0**-9  # of numbers about 1: their mean square is then 0.4 eps
PACKED = (5, 0, 67, 1)  # a sequence without tokens, and one of a single token


def problem(op: str, at: Mapping[str, Any]) -> Problem:
    """The problem at a point of the axes; raises OptionError for values that do not go together.

    `optional` names the optional tensors present; those of MIMO come by themselves for rank > 1.
    """
    H, G, N, R = at["heads"], at["groups"], at["state"], at["rank"]
    if H % G:
        raise OptionError("--groups", f"divisors of heads = {H}", str(G), "change either axis")
    if N % 4:
        raise OptionError("--state", "multiples of 4", str(N), "the angles turn a quarter of it")
    pairing = at["pairing"]
    if pairing == "official":
        pairing = "interleaved" if R == 1 else "half"
    present = set(at["optional"]) | (set(MIMO) if R > 1 else set())
    if at["norm"] == "normalised":
        present -= {"b_norm", "c_norm"}
    if at["step"] == "activated":
        present -= {"dt_bias"}
    return Problem(
        op=op,
        B=at["batch"],
        L=1 if op == "decode" else at["length"],
        H=H,
        G=G,
        P=at["head_size"],
        N=N,
        R=R,
        S=N // 4 if at["angles"] == "quarter" else N // 2,
        dtype=DTYPES[at["dtype"]],
        state_dtype=DTYPES[at["state_dtype"]],
        options=Options(
            step=at["step"],
            decay=at["decay"],
            norm=at["norm"],
            pairing=pairing,
            matmul="tf32" if at["dtype"] == "tf32" else "dtype",
        ),
        optional=tuple(name for name in OPTIONAL if name in present),
        has_state=op == "decode" or at["initial_state"] == "yes",
    )


@dataclass(frozen=True, slots=True)
class Case(HardCase):
    """A hard case, in which one batch row may be padding, every input may have memory and strides
    of its own, and b and c may be faint at the start: as small as the eps of their norms, then 0.
    """

    padding: bool = False
    apart: bool = False
    faint: bool = False

    def __str__(self) -> str:
        p = self.problem
        parts = [self.regime.replace("_", " "), f"B = {p.B}"]
        parts += [f"L = {p.L}"] if p.lengths is None else [f"lengths {list(p.lengths)}"]
        parts += ["with a state"] if p.has_state and p.op == "prefill" else []
        parts += [f"pool of {p.pool}"] if p.pool is not None else []
        parts += ["a padding row"] if self.padding else []
        parts += ["inputs apart"] if self.apart else []
        parts += ["faint b and c"] if self.faint else []
        return ", ".join(parts)

    def call(self, seed: int, device: torch.device) -> Call:
        """The call of this case."""
        call = make_call(self.problem, seed, device, self.regime)  # type: ignore[arg-type]
        if self.padding:
            assert call.state_indices is not None
            call.state_indices[1] = -1
        if self.apart:
            inputs = call.inputs.map(lambda _, t: t.clone(memory_format=torch.contiguous_format))
            call = replace(call, inputs=inputs)
        if self.faint:  # by rows of the batch in decode, else by tokens of each
            for tensor in (call.inputs.b, call.inputs.c):
                rows = tensor if self.problem.op == "decode" else tensor.transpose(0, 1)
                rows[0] *= FAINT
                rows[1] = 0
        return call


def hard_cases(problem: Problem) -> list[Case]:
    """The cases that go with a problem; two problems with equal lists share their verdicts.

    Where a config cuts long sequences, only one as long as the problem's is cut: alone and packed,
    with values that remember what came before the cut.
    """
    per_group = min(problem.H // problem.G, 3)
    G = min(problem.G, 2)
    small = replace(problem, H=G * per_group, G=G, lengths=None, pool=None)
    if problem.op == "decode":
        rows = replace(small, B=3)
        return [
            Case(rows, "typical", faint=True),
            Case(rows, "strong_decay", apart=True),
            Case(rows, "weak_decay"),
            Case(rows, "large_angles"),
            Case(replace(small, B=1), "typical"),
            Case(replace(rows, pool=5), "typical", padding=True),
        ]
    fresh, carried = replace(small, has_state=False), replace(small, has_state=True)
    longest = max(problem.lengths) if problem.lengths else problem.L
    beside = (PACKED[0], longest, PACKED[-1])
    long = [
        Case(replace(carried, B=1, L=longest), "weak_decay"),
        Case(replace(carried, B=1, L=sum(beside), lengths=beside), "weak_decay"),
    ]
    return [
        Case(replace(carried, B=2, L=CHUNKS), "typical", faint=True),
        Case(replace(fresh, B=2, L=RAGGED), "strong_decay", apart=True),
        Case(replace(carried, B=2, L=RAGGED), "weak_decay"),
        Case(replace(fresh, B=1, L=CHUNKS), "large_angles"),
        Case(replace(fresh, B=3, L=1), "typical"),
        Case(replace(carried, B=1, L=1), "strong_decay"),
        Case(replace(carried, B=1, L=sum(PACKED), lengths=PACKED), "typical"),
        Case(replace(fresh, B=1, L=sum(PACKED), lengths=PACKED), "weak_decay"),
        *(long if longest > CHUNKS else []),
    ]


def rival_cases(problem: Problem) -> list[Case]:
    """The cases for other people's kernels, which may be 5 % off: their own problem only.

    A typical step adds less than that to a state, so a decode that forgets its token would pass. A
    case of large steps does not forgive it.
    """
    return [Case(problem, "large_angles")] if problem.op == "decode" else []


FAMILY = Family("Mamba-3", AXES, problem, make_call, hard_cases, rival_cases)
