"""What the suite knows of an op: its family of problems, their calls, hard cases and axes.

A family is a kind of layer: Mamba-3, or one that it is compared with. Its ops have problems of
their own, a float64 reference (backend `reference`), and a yardstick in the same precision (backend
`torch`). The bench meets them only through what is declared here.
To add one: write its module under families/ and add its ops to `FAMILIES`.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

# op -> module under families/ whose FAMILY it belongs to
FAMILIES: dict[str, str] = {
    "prefill": "mamba3",
    "decode": "mamba3",
    "mamba2.prefill": "mamba2",
    "mamba2.decode": "mamba2",
    "gdn.prefill": "gated_deltanet",
    "gdn.decode": "gated_deltanet",
    "attention.prefill": "attention",
    "attention.decode": "attention",
}
DTYPES = {  # the names of dtypes on an axis
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,  # float32 activations, products rounded to tf32
}


@dataclass(frozen=True, slots=True)
class Rows:
    """A product of batch rows and heads; they are independent, so a subset has its own truth."""

    batch: tuple[int, ...]
    heads: tuple[int, ...]


class Problem(Protocol):
    """One problem: hashable, picklable, with all that its inputs need beside a seed."""

    def __hash__(self) -> int:
        """Equal problems have equal ones."""

    @property
    def op(self) -> str:
        """The op that it is a problem of."""

    @property
    def H(self) -> int:
        """Heads."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""

    @property
    def matmul(self) -> Literal["dtype", "tf32"]:
        """What the operands of matrix products are rounded to."""

    @property
    def flops(self) -> int:
        """Operations of its matrix products."""

    @property
    def bytes(self) -> int:
        """Fewest bytes through device memory."""

    @property
    def row_elements(self) -> int:
        """Numbers that the truth of one batch row and head keeps at a time."""

    @property
    def row_numbers(self) -> int:
        """Numbers that the truth of one batch row and head makes of all its tokens together."""

    @property
    def product_sums(self) -> tuple[str, ...]:
        """The outputs that are sums of products of two rounded operands."""

    @property
    def angles(self) -> tuple[str, ...]:
        """The outputs that are angles: 0 and 2 pi are one."""

    @property
    def unsteady(self) -> tuple[str, ...]:
        """The outputs in which a vector may be a difference of nearly nothing."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a record."""


class Call(Protocol):
    """One checked call of an op with its buffers."""

    @property
    def problem(self) -> Any:
        """Its problem."""

    @property
    def y(self) -> Tensor:
        """The output."""

    @property
    def in_place(self) -> bool:
        """Whether a state is updated in place."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; one that is updated in place appears once."""

    def outputs(self) -> dict[str, Tensor]:
        """Every tensor that it writes."""

    def written(self) -> dict[str, Tensor]:
        """The outputs without the rows that no kernel writes."""

    def kept(self) -> dict[str, Tensor]:
        """The rows of the outputs that no kernel may write."""

    def results(self) -> dict[str, Tensor]:
        """The outputs in float64, to compare; angles as (cos, sin)."""

    def batch_rows(self) -> list[int]:
        """The batch rows that have a result."""

    def clone(self) -> Self:
        """The same call on copies of every tensor."""

    def widened(self) -> Self:
        """The same call on float64 outputs."""

    def poison(self) -> None:
        """Fill what it only writes with NaN."""

    def take(self, rows: Rows) -> Self:
        """The call restricted to some rows, on copies."""


@dataclass(frozen=True, slots=True)
class HardCase:
    """A small problem beside a timed one, and the regime of the values it is given."""

    problem: Any
    regime: str = "typical"

    def __str__(self) -> str:
        plain = self.problem.as_dict()
        parts = [self.regime.replace("_", " "), f"B = {plain['B']}", f"L = {plain['L']}"]
        return ", ".join([*parts, *(["with a state"] if plain["has_state"] else [])])

    def call(self, seed: int, device: torch.device) -> Call:
        """The call of this case."""
        return make_call(self.problem, seed, device, self.regime)


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of layer and its ops."""

    title: str
    axes: tuple[str, ...]  # the axes that its problems vary on
    problem: Callable[[str, Mapping[str, Any]], Any]  # of an op and a value on each axis
    make_call: Callable[[Any, int, torch.device, Any], Any]  # of a problem, seed, device, regime
    hard_cases: Callable[[Any], Sequence[Any]]  # beside a problem; equal lists share verdicts
    rival_cases: Callable[[Any], Sequence[Any]]  # for other people's kernels


def family(op: str) -> Family:
    """The family of an op."""
    module = importlib.import_module(f"{__package__}.families.{FAMILIES[op]}")
    found: Family = module.FAMILY
    return found


def ops() -> list[str]:
    """Every op."""
    return list(FAMILIES)


def make_call(
    problem: Problem, seed: int, device: torch.device | str = "cpu", regime: str = "typical"
) -> Call:
    """The checked call of any problem, its values from a seed, the same on every device."""
    call: Call = family(problem.op).make_call(problem, seed, torch.device(device), regime)
    return call
