"""The torch backend is differentiable: its gradients against finite differences."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mamba3_bench.kernels.call import Call
from mamba3_bench.kernels.cases import make_call
from mamba3_bench.kernels.ops import decode, prefill
from mamba3_bench.kernels.problem import Options, Problem
from mamba3_bench.kernels.torch.prefill import Config

KINDS = ("inputs", "params", "state")


def leaves(call: Call) -> dict[tuple[str, str], Tensor]:
    """Every floating tensor that the results depend on, as an independent leaf."""
    return {
        (kind, name): tensor.detach().clone().requires_grad_()
        for kind in KINDS
        for name, tensor in getattr(call, kind).items()
    }


def rebuilt(call: Call, tensors: dict[tuple[str, str], Tensor]) -> dict[str, Any]:
    """The arguments of an op, from tensors by kind and name."""
    return {
        kind: replace(getattr(call, kind), **{n: t for (k, n), t in tensors.items() if k == kind})
        for kind in KINDS
    }


@pytest.mark.parametrize(
    ("R", "pairing", "lengths"),
    [(1, "interleaved", None), (2, "half", None), (1, "half", (2, 0, 3))],
)
def test_prefill_gradients(
    make_problem: Callable[..., Problem], seed: int, R: int, pairing: Any, lengths: Any
) -> None:
    """Of y and of every returned state, by every input, parameter and initial state."""
    problem = make_problem(
        "prefill", B=1, L=5, H=2, G=1, P=2, N=4, R=R, S=1, lengths=lengths,
        options=Options(pairing=pairing),
    )  # fmt: skip
    call = make_call(problem, seed)
    tensors = leaves(call)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = rebuilt(call, dict(zip(tensors, values, strict=True)))
        y, final = prefill(
            **arguments, cu_seqlens=call.cu_seqlens, options=problem.options,
            backend="torch", config=Config(chunk_size=2),
        )  # fmt: skip
        return y, final.phi.cos(), final.phi.sin(), final.h, final.k, final.x

    assert gradcheck(function, tuple(tensors.values()), fast_mode=True)


def test_decode_gradients(make_problem: Callable[..., Problem], seed: int) -> None:
    """Through two chained steps, although the state is updated in place."""
    problem = make_problem("decode", B=2, H=2, G=1, P=2, N=4, R=2, S=2)
    call = make_call(problem, seed)
    tensors = leaves(call)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = rebuilt(call, dict(zip(tensors, values, strict=True)))
        state = arguments["state"] = arguments["state"].map(lambda _, t: t.clone())
        ys = [decode(**arguments, backend="torch") for _ in range(2)]
        return *ys, state.phi.cos(), state.phi.sin(), state.h, state.k, state.x

    assert gradcheck(function, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_gradients_are_near_the_float64_ones(
    make_problem: Callable[..., Problem], seed: int, dtype: torch.dtype
) -> None:
    """Rounded operands let gradients pass: each is within 2 % of the one of the same values.

    Ten or so roundings of 2^-8 lie on the way, in quadrature 1.2 %.
    """
    narrow = make_call(make_problem("prefill", dtype=dtype, P=16, N=16, S=4), seed)
    grads = []
    for wide in (False, True):
        tensors = leaves(narrow)
        if wide:
            tensors = {k: v.detach().double().requires_grad_() for k, v in tensors.items()}
        y, final = prefill(**rebuilt(narrow, tensors), backend="torch")
        (y.double().square().sum() + final.h.double().square().sum()).backward()
        grads.append([tensor.grad for tensor in tensors.values()])
    for name, got, expected in zip(tensors, *grads, strict=True):
        assert got is not None
        assert expected is not None
        assert float((got.double() - expected).norm() / expected.norm()) < 0.02, name
