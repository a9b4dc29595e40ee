"""Softmax attention: what a Transformer pays for the same tokens, without its rotary embedding.

    y_t = sum_{s <= t} softmax_s(q_t . k_s / sqrt(N)) v_s

A decode step writes its key and value at the end of a cache of L tokens and attends to all L. There
H counts query heads, G heads of k and v; P and N are both the head size.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...reference import attention
from ..draws import Draws
from ..family import Family, HardCase
from ..plain import RAGGED, PlainCall, PlainProblem, Spec, make_call, problem_of
from ..registry import Config, implements

AXES = ("dtype", "heads", "head_size", "groups", "batch", "length")
QKV = (Spec("q", "B L H N"), Spec("k", "B L G N"), Spec("v", "B L G P"))


class Prefill(PlainProblem):
    """Causal attention over whole sequences; the cache is the inputs themselves."""

    __slots__ = ()
    SPECS: ClassVar[tuple[Spec, ...]] = QKV

    @property
    def row_elements(self) -> int:
        """Scores and values of one query head."""
        return self.L * self.P

    @property
    def flops(self) -> int:
        """q k^T and its product with v, of the pairs that the mask leaves."""
        pairs = self.L * (self.L + 1) // 2
        return self.B * self.H * pairs * 2 * (self.N + self.P)


class Decode(PlainProblem):
    """One query over a cache of L tokens, its own the last."""

    __slots__ = ()
    SPECS: ClassVar = (*QKV, Spec("keys", "B T G N", "state"), Spec("values", "B T G P", "state"))

    @property
    def T(self) -> int:
        """Tokens in the cache."""
        return self.L

    @property
    def row_elements(self) -> int:
        """Keys and values of one query head."""
        return self.L * (self.N + self.P)

    @property
    def flops(self) -> int:
        """q k^T and its product with v."""
        return self.B * self.H * self.L * 2 * (self.N + self.P)

    @property
    def bytes(self) -> int:
        """The cache is read once; one token of it is written, and that one is not read."""
        inputs = sum(self.nbytes(spec) for spec in self.of("input"))
        cache = sum(self.nbytes(spec) for spec in self.of("state"))
        y = self.B * self.H * self.P * self.dtype.itemsize
        return inputs + cache + y


def problem(op: str, at: Mapping[str, Any]) -> PlainProblem:
    """The problem at a point of the axes; the cache has the dtype of the activations."""
    given = dict(at) | {"state": at["head_size"], "state_dtype": at["dtype"], "initial_state": "no"}
    kind = Decode if op.endswith("decode") else Prefill
    return replace(problem_of(kind, op, given), L=at["length"])


def draw(name: str, draws: Draws, shape: tuple[int, ...], regime: str) -> Tensor:
    """Standard normal numbers; sharp: scores of which few tokens matter."""
    value = draws.normal(*shape)
    return 4 * value if regime == "sharp" and name == "q" else value


def hard_cases(problem: PlainProblem) -> list[HardCase]:
    """Ragged lengths, a single token, and scores of which few matter."""
    small = replace(problem, H=problem.H // problem.G * min(problem.G, 2), G=min(problem.G, 2))
    return [
        HardCase(replace(small, B=2, L=RAGGED)),
        HardCase(replace(small, B=2, L=RAGGED), "sharp"),
        HardCase(replace(small, B=3, L=1)),
    ]


def rival_cases(problem: PlainProblem) -> list[HardCase]:
    """A short cache, in which the new token weighs."""
    return [HardCase(replace(problem, L=min(problem.L, 2)))] if problem.decodes else []


def supports(problem: PlainProblem, device: torch.device) -> str | None:
    """Everything is supported."""
    return None


@implements("attention.prefill", "reference", supports=supports)
def prefill(call: PlainCall, config: Config) -> None:
    """Run the float64 definition."""
    call.store(attention.prefill(**call.inputs))


@implements("attention.decode", "reference", supports=supports)
def decode(call: PlainCall, config: Config) -> None:
    """Append to the cache and run the float64 definition."""
    keys, values = (
        torch.cat((call.final[cache][:, :-1], call.inputs[new].unsqueeze(1)), 1)
        for cache, new in (("keys", "k"), ("values", "v"))
    )
    y = attention.prefill(call.inputs["q"].unsqueeze(1), keys, values)
    call.store(y, keys=keys, values=values)


FAMILY = Family("Attention", AXES, problem, partial(make_call, draw), hard_cases, rival_cases)
