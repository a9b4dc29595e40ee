"""Problems and calls of the families beside Mamba-3: each tensor is declared once, by its dims.

From the declarations follow shapes, bytes, inputs from a seed, clones and the restriction to some
rows. Dims are those of Mamba-3 (B L H G P N); L falls away in a decode step, whose state is updated
in place. All tensors are contiguous.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from .draws import Draws
from .errors import OptionError
from .family import DTYPES, HardCase, Rows
from .problem import dtype_name

Role = Literal["input", "param", "state"]
Draw = Callable[[str, Draws, tuple[int, ...], str], Tensor]  # of a name, a shape and a regime
AXES = (
    *("dtype", "state_dtype", "state", "heads", "head_size", "groups"),
    *("initial_state", "batch", "length"),
)
RAGGED = 67  # one token chunk of 64 and 3 tokens more


@dataclass(frozen=True, slots=True)
class Spec:
    """One tensor: inputs have the activations' dtype, parameters are float32."""

    name: str
    dims: str  # `B L H P`
    role: Role = "input"


@dataclass(frozen=True, slots=True)
class PlainProblem:
    """One problem; a family declares its tensors and counts its FLOPs."""

    SPECS: ClassVar[tuple[Spec, ...]]
    Y: ClassVar[str] = "B L H P"

    op: str
    B: int
    L: int
    H: int
    G: int
    P: int
    N: int
    dtype: torch.dtype  # of activations
    state_dtype: torch.dtype
    has_state: bool = False

    @property
    def decodes(self) -> bool:
        """Whether it is a decode step."""
        return self.op.endswith("decode")

    @property
    def matmul(self) -> Literal["dtype", "tf32"]:
        """Operands keep the dtype of the activations."""
        return "dtype"

    @property
    def row_elements(self) -> int:
        """Numbers in the state of one batch row and head."""
        return self.P * self.N

    @property
    def row_numbers(self) -> int:
        """q, k and v of each token, or what stands for them."""
        return self.L * (2 * self.N + self.P)

    @property
    def product_sums(self) -> tuple[str, ...]:
        """The outputs that are sums of products of two rounded operands."""
        return () if self.decodes else ("y", *(f"state.{spec.name}" for spec in self.of("state")))

    @property
    def angles(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def unsteady(self) -> tuple[str, ...]:
        """None."""
        return ()

    @property
    def flops(self) -> int:
        """Operations of the matrix products."""
        raise NotImplementedError

    @property
    def bytes(self) -> int:
        """Fewest bytes through device memory: inputs read once, outputs and states written once."""
        read = sum(self.nbytes(spec) for spec in (*self.of("input"), *self.of("param")))
        state = sum(self.nbytes(spec) for spec in self.of("state"))
        y = prod(self.shape(self.Y)) * self.dtype.itemsize
        return read + y + (2 if self.has_state else 1) * state

    @classmethod
    def of(cls, role: Role) -> list[Spec]:
        """The tensors of a role."""
        return [spec for spec in cls.SPECS if spec.role == role]

    def dims(self, text: str) -> list[str]:
        """The names of a tensor's dims; a decode step has no L."""
        return [dim for dim in text.split() if dim != "L" or not self.decodes]

    def shape(self, text: str) -> tuple[int, ...]:
        """The sizes of a tensor's dims."""
        return tuple(getattr(self, dim) for dim in self.dims(text))

    def dtype_of(self, spec: Spec) -> torch.dtype:
        """The dtype of a tensor; everything is at least as wide as float64 activations."""
        if spec.role == "input":
            return self.dtype
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return wide if spec.role == "param" else self.state_dtype

    def nbytes(self, spec: Spec) -> int:
        """Bytes of a tensor."""
        return prod(self.shape(spec.dims)) * self.dtype_of(spec).itemsize

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a record: dtypes by name."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        names = {name: dtype_name(plain[name]) for name in ("dtype", "state_dtype")}
        return plain | names


@dataclass(frozen=True, slots=True)
class PlainCall:
    """One call; an implementation writes `y` and every tensor of `final`.

    A decode step has `final` is `state` and updates it in place.
    """

    problem: Any
    inputs: dict[str, Tensor]  # with the parameters
    state: dict[str, Tensor] | None
    final: dict[str, Tensor]
    y: Tensor

    @property
    def in_place(self) -> bool:
        """Whether the state is updated in place."""
        return self.final is self.state

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; one that is updated in place appears once."""
        found = {f"inputs.{name}": tensor for name, tensor in self.inputs.items()}
        if self.state is not None and not self.in_place:
            found |= {f"state.{name} given": tensor for name, tensor in self.state.items()}
        return found | self.outputs()

    def outputs(self) -> dict[str, Tensor]:
        """Every tensor that the call writes."""
        return {"y": self.y} | {f"state.{name}": tensor for name, tensor in self.final.items()}

    def written(self) -> dict[str, Tensor]:
        """All outputs: there is no padding."""
        return self.outputs()

    def kept(self) -> dict[str, Tensor]:
        """Nothing: there is no padding."""
        return {}

    def results(self) -> dict[str, Tensor]:
        """The outputs in float64."""
        return {name: tensor.double() for name, tensor in self.outputs().items()}

    def batch_rows(self) -> list[int]:
        """All batch rows."""
        return list(range(self.problem.B))

    def clone(self) -> "PlainCall":
        """The same call on copies of every tensor."""
        return self._mapped(lambda dims, tensor: tensor.clone())

    def widened(self) -> "PlainCall":
        """The same call on float64 outputs."""
        final = {name: tensor.double() for name, tensor in self.final.items()}
        state = final if self.in_place else self.state
        return replace(self, state=state, final=final, y=self.y.double())

    def poison(self) -> None:
        """Fill what the call only writes with NaN."""
        self.y.fill_(torch.nan)
        if not self.in_place:
            for tensor in self.final.values():
                tensor.fill_(torch.nan)

    def take(self, rows: Rows) -> "PlainCall":
        """The call restricted to some rows, on copies: every head gets its own group."""
        p = self.problem
        per_group = p.H // p.G
        chosen = {
            "B": rows.batch,
            "H": rows.heads,
            "G": tuple(head // per_group for head in rows.heads),
        }

        def cut(dims: str, tensor: Tensor) -> Tensor:
            for axis, dim in enumerate(p.dims(dims)):
                if dim in chosen:
                    index = torch.tensor(chosen[dim], device=tensor.device)
                    tensor = tensor.index_select(axis, index)
            return tensor

        H = len(rows.heads)
        return replace(self._mapped(cut), problem=replace(p, B=len(rows.batch), H=H, G=H))

    def sequence(self) -> dict[str, Tensor]:
        """Inputs and parameters by name, a decode step as a sequence of one token."""
        p = self.problem
        if not p.decodes:
            return self.inputs
        inputs = {spec.name for spec in p.of("input")}
        return {n: t.unsqueeze(1) if n in inputs else t for n, t in self.inputs.items()}

    def store(self, y: Tensor, **final: Tensor) -> None:
        """Write the outputs; the y of a decode step may come as a sequence of one token."""
        self.y.copy_(y.squeeze(1) if y.ndim > self.y.ndim else y)
        for name, tensor in final.items():
            self.final[name].copy_(tensor)

    def _mapped(self, function: Callable[[str, Tensor], Tensor]) -> "PlainCall":
        """The same call on other tensors, made from dims and tensor."""
        dims = {spec.name: spec.dims for spec in self.problem.SPECS}

        def mapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: function(dims[name], tensor) for name, tensor in tensors.items()}

        final = mapped(self.final)
        state = None if self.state is None else final if self.in_place else mapped(self.state)
        y = function(self.problem.Y, self.y)
        return replace(self, inputs=mapped(self.inputs), state=state, final=final, y=y)


def make_call(
    draw: Draw, problem: PlainProblem, seed: int, device: torch.device, regime: str
) -> PlainCall:
    """The call of a problem, its values from a seed, drawn in float32 and then rounded."""
    draws = Draws(seed, device)
    made = {
        spec.name: draw(spec.name, draws, problem.shape(spec.dims), regime).to(
            problem.dtype_of(spec)
        )
        for spec in problem.SPECS
        if spec.role != "state" or problem.has_state
    }
    states = problem.of("state")
    state = {spec.name: made.pop(spec.name) for spec in states} if problem.has_state else None
    final = state
    if final is None or not problem.decodes:
        final = {
            spec.name: torch.empty(
                problem.shape(spec.dims), dtype=problem.dtype_of(spec), device=device
            )
            for spec in states
        }
    y = torch.empty(problem.shape(problem.Y), dtype=problem.dtype, device=device)
    return PlainCall(problem, made, state, final, y)


def problem_of(kind: type[PlainProblem], op: str, at: Any) -> PlainProblem:
    """The problem at a point of the axes; raises OptionError for values that do not go together."""
    if at["heads"] % at["groups"]:
        expected = f"divisors of heads = {at['heads']}"
        raise OptionError("--groups", expected, str(at["groups"]), "change either axis")
    if at["dtype"] == "tf32":
        raise OptionError("--dtype", f"bf16, fp16 or fp32 for {op}", "tf32", "leave it out")
    decodes = op.endswith("decode")
    return kind(
        op=op,
        B=at["batch"],
        L=1 if decodes else at["length"],
        H=at["heads"],
        G=at["groups"],
        P=at["head_size"],
        N=at["state"],
        dtype=DTYPES[at["dtype"]],
        state_dtype=DTYPES[at["state_dtype"]],
        has_state=decodes or at["initial_state"] == "yes",
    )


def hard_cases(regimes: Sequence[str], problem: PlainProblem) -> list[HardCase]:
    """Ragged and single tokens, with and without a state, in each regime of a family."""
    small = replace(problem, H=problem.H // problem.G * min(problem.G, 2), G=min(problem.G, 2))
    if problem.decodes:
        return [HardCase(replace(small, B=3), regime) for regime in regimes]
    carried, fresh = replace(small, has_state=True), replace(small, has_state=False)
    return [
        *(HardCase(replace(fresh, B=2, L=RAGGED), regime) for regime in regimes),
        HardCase(replace(carried, B=1, L=RAGGED)),
        HardCase(replace(carried, B=3, L=1)),
    ]


def rival_cases(regime: str, problem: PlainProblem) -> list[HardCase]:
    """A decode step that outweighs its state: 5 % of a typical one would forgive its loss."""
    return [HardCase(problem, regime)] if problem.decodes else []


def bound_to(kind: type[PlainProblem]) -> Callable[[str, Any], PlainProblem]:
    """`problem_of` for one family."""
    return partial(problem_of, kind)
