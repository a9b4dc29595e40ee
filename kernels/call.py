"""One checked call of an op: what an implementation gets, and what gate and timer repeat."""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, UntypedStorage

from .family import Rows
from .problem import Problem
from .tensors import Inputs, Params, State

EMPTY_STRIDED_CUDA: Any = getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None)


@dataclass(
    slots=True, eq=False
)  # a frozen one takes 1.5 us more to make, of the 20 of an eager call
class Call:
    """A validated call with its buffers; an implementation writes only what is named here.

    prefill reads `state` (None for fresh sequences) and writes `y` and every tensor of `final`.
    decode writes `y` and updates `state` in place (`final` is `state`), at the rows of
    `state_indices`.
    """

    problem: Problem
    inputs: Inputs
    params: Params
    state: State | None
    final: State
    y: Tensor  # (B, L, H, P), (B, L, R, H, P) unreduced; decode without L
    cu_seqlens: Tensor | None = None
    state_indices: Tensor | None = None

    def outputs(self) -> dict[str, Tensor]:
        """Every tensor the call writes, by name: y, and state.phi, state.h, state.k, state.x."""
        return {"y": self.y} | {f"state.{name}": tensor for name, tensor in self.final.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the call by name; a state updated in place appears once."""
        found = {f"inputs.{name}": tensor for name, tensor in self.inputs.items()}
        found |= {f"params.{name}": tensor for name, tensor in self.params.items()}
        if self.state is not None and self.state is not self.final:
            found |= {f"state.{name} given": tensor for name, tensor in self.state.items()}
        found |= self.outputs()
        extra = {"cu_seqlens": self.cu_seqlens, "state_indices": self.state_indices}
        return found | {name: tensor for name, tensor in extra.items() if tensor is not None}

    @property
    def in_place(self) -> bool:
        """Whether the state is updated in place."""
        return self.final is self.state

    def batch_rows(self) -> list[int]:
        """The batch rows that are no padding."""
        if self.state_indices is None:
            return list(range(self.problem.B))
        return (self.state_indices >= 0).nonzero()[:, 0].tolist()

    def written(self) -> dict[str, Tensor]:
        """The outputs without padding rows and idle pool rows, which no kernel writes."""
        if self.state_indices is None:
            return self.outputs()
        active = self.batch_rows()
        pool = self.state_indices.long()[active]
        return {
            name: tensor[active if name == "y" else pool] for name, tensor in self.outputs().items()
        }

    def kept(self) -> dict[str, Tensor]:
        """The pool rows of the state that no batch row names."""
        if self.state_indices is None:
            return {}
        idle = torch.ones(self.problem.sequences, dtype=torch.bool, device=self.y.device)
        idle[self.state_indices[self.state_indices >= 0].long()] = False
        return {f"state.{name}": tensor[idle] for name, tensor in self.final.items()}

    def widened(self) -> "Call":
        """The same call on float64 outputs."""
        final = self.final.map(lambda _, tensor: tensor.double())
        state = final if self.in_place else self.state
        return replace(self, state=state, final=final, y=self.y.double())

    def results(self) -> dict[str, Tensor]:
        """The outputs in float64, to compare; angles as (cos, sin), because 0 and 2 pi are one."""
        results = {name: tensor.double() for name, tensor in self.outputs().items()}
        phi = results["state.phi"]
        results["state.phi"] = torch.stack((phi.cos(), phi.sin()), -1)
        return results

    def clone(self) -> "Call":
        """The same call on its own copies of every tensor.

        Inputs that are slices of one projection stay slices of one copy: same strides, same gaps.
        """
        storages: dict[int, UntypedStorage] = {}
        state = None if self.state is None else self.state.map(lambda _, t: t.clone())
        final = (
            state
            if self.final is self.state and state is not None
            else self.final.map(lambda _, t: t.clone())
        )
        return replace(
            self,
            inputs=self.inputs.map(lambda _, t: clone_view(t, storages)),
            params=self.params.map(lambda _, t: t.clone()),
            state=state,
            final=final,
            y=self.y.clone(),
            cu_seqlens=None if self.cu_seqlens is None else self.cu_seqlens.clone(),
            state_indices=None if self.state_indices is None else self.state_indices.clone(),
        )

    def poison(self) -> None:
        """Fill what the call writes with NaN; a state updated in place is input too and stays."""
        self.y.fill_(torch.nan)
        if self.final is not self.state:
            for _, tensor in self.final.items():
                tensor.fill_(torch.nan)

    def take(self, rows: Rows) -> "Call":
        """The call restricted to some rows, on copies: every head gets its own group of b and c.

        With cu_seqlens the batch is one row and every sequence is kept. With state_indices the pool
        shrinks to the rows taken, and padding rows, which have no result, are left out.
        """
        p = self.problem
        packed = self.cu_seqlens is not None
        batch, heads = list(rows.batch), list(rows.heads)
        groups = [head // (p.H // p.G) for head in heads]
        seqs = list(range(p.sequences)) if packed else batch
        if self.state_indices is not None:
            indices = self.state_indices.tolist()
            batch = [row for row in batch if indices[row] >= 0]
            seqs = [indices[row] for row in batch]

        def cut_input(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor[batch]
            if name in ("b", "c"):
                return tensor[..., groups, :]
            lead = 1 if p.op == "decode" else 2
            if name == "theta" and not p.theta_per_head:
                return tensor
            return tensor.index_select(lead, torch.tensor(heads, device=tensor.device))

        def cut_param(name: str, tensor: Tensor) -> Tensor:
            return tensor if name in ("b_norm", "c_norm") else tensor[heads]

        def cut_state(name: str, tensor: Tensor) -> Tensor:
            tensor = tensor[seqs]
            return tensor[:, :, heads] if name == "k" else tensor[:, heads]

        state = None if self.state is None else self.state.map(cut_state)
        final = (
            state if self.final is self.state and state is not None else self.final.map(cut_state)
        )
        H = len(heads)
        return replace(
            self,
            problem=replace(p, B=len(batch), H=H, G=H, pool=None),
            inputs=self.inputs.map(cut_input),
            params=self.params.map(cut_param),
            state=state,
            final=final,
            y=self.y[batch].index_select(
                self.y.ndim - 2, torch.tensor(heads, device=self.y.device)
            ),
            state_indices=None,
        )


def clone_view(tensor: Tensor, storages: dict[int, UntypedStorage]) -> Tensor:
    """The same view of a copy of its storage; `storages` holds the copies made so far."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in storages:
        storages[storage.data_ptr()] = storage.clone()  # type: ignore[no-untyped-call]
    copy = storages[storage.data_ptr()]
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return view.set_(copy, tensor.storage_offset(), tensor.shape, tensor.stride())


def y_shape(problem: Problem) -> tuple[int, ...]:
    """The shape of a call's output."""
    p = problem
    lead = (p.B,) if p.op == "decode" else (p.B, p.L)
    return (*lead, p.H, p.P) if p.reduced else (*lead, p.R, p.H, p.P)


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; on the current GPU by the allocation of PyTorch's generated code.

    It takes 1 us of the host where torch.empty takes 4 to 6 (beside an H100).
    """
    here = device.type == "cuda" and device.index == torch._C._cuda_getDevice()
    if here and EMPTY_STRIDED_CUDA is not None:
        made: Tensor = EMPTY_STRIDED_CUDA(shape, packed_strides(shape), dtype)
        return made
    return torch.empty(shape, dtype=dtype, device=device)


@cache
def packed_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def new_state(problem: Problem, device: torch.device) -> State:
    """The uninitialised state of a problem."""
    p = problem
    wide = torch.float64 if p.dtype == torch.float64 else torch.float32
    return State(
        phi=empty((p.sequences, p.H, p.S), wide, device),
        h=empty((p.sequences, p.H, p.P, p.N), p.state_dtype, device),
        k=empty((p.sequences, p.R, p.H, p.N), p.dtype, device),
        x=empty((p.sequences, p.H, p.P), p.dtype, device),
    )


def capturing(tensor: Tensor) -> bool:
    """Whether work on a tensor's device is being captured in a graph, so that nobody may wait."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def readable(tensor: Tensor) -> bool:
    """Whether the values of a call may be looked at: they are there, and waiting is allowed."""
    return not tensor.is_meta and not capturing(tensor)


def token_stride(tensor: Tensor) -> int:
    """Elements from one token to the next of a (B, L, ...) input; a batch is L of them."""
    B, L = tensor.shape[:2]
    return tensor.stride(0) // L if B > 1 else tensor.stride(1)


def row_strides(inputs: Inputs) -> list[int]:
    """Elements from one batch row to the next of each input of a decode; 0 for an absent one."""
    return [0 if tensor is None else tensor.stride(0) for tensor in inputs.every()]
