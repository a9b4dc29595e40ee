"""Order of convergence of the recurrence to the continuous system that it discretises.

The system, for one head, one row of the state and one rotated pair read as a complex number:

    g'(t) = (A(t) - i theta) g(t) + x(t) b,    y(t) = Re(conj(c) g(t)),    x(t) = cos(w t)

An exponential-trapezoidal step D takes the input by a quadrature rule: the right end for lam = 1,
both ends for lam = 1/2. Its decay is exact where the log decay handed in is the integral of A over
the step, as it is for constant A.
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mamba3_bench.reference import mamba3

END, THETA, OMEGA = 2.0, 2.5, 3.0
B_PAIR, C_PAIR = complex(0.8, -0.6), complex(0.3, 1.1)
STEPS = [2**i for i in range(5, 11)]  # D from 1/16 to 1/512

Integral = Callable[[np.ndarray], np.ndarray]  # of A from 0 to t
INTEGRALS: dict[str, Integral] = {
    "constant": lambda t: -1.5 * t,
    "varying": lambda t: -1.5 * t + np.sin(2 * t) / 4,  # A = -1.5 + cos(2 t) / 2
}


def exact(integral: Integral) -> float:
    """y(END) = Re(conj(c) b int_0^END exp(I(END) - I(s) - i theta (END - s)) cos(w s) ds)."""
    nodes, weights = np.polynomial.legendre.leggauss(60)  # to float64 rounding: all is smooth
    s = (nodes + 1) * END / 2
    end = integral(np.array(END))
    values = np.exp(end - integral(s) - 1j * THETA * (END - s)) * np.cos(OMEGA * s)
    return float((C_PAIR.conjugate() * B_PAIR * (weights @ values) * END / 2).real)


def discretised(log_decay: np.ndarray, lam: float, *, input_at_0: bool = True) -> float:
    """y(END) by the recurrence, one step for each log decay; the state before holds x(0) b."""
    L = len(log_decay)
    t = torch.linspace(END / L, END, L, dtype=torch.float64)

    def pair(v: complex) -> torch.Tensor:
        return torch.tensor([v.real, v.imag, 0.0, 0.0], dtype=torch.float64)

    start = mamba3.State(
        phi=torch.zeros(1, 1, 1), h=torch.zeros(1, 1, 1, 4),
        k=pair(B_PAIR).view(1, 1, 1, 4), x=torch.full((1, 1, 1), float(input_at_0)),
    )  # fmt: skip
    y, _ = mamba3.prefill(
        x=(OMEGA * t).cos().view(1, L, 1, 1),
        b=pair(B_PAIR).expand(1, L, 1, 1, 4),
        c=pair(C_PAIR).expand(1, L, 1, 1, 4),
        dt=torch.full((1, L, 1), END / L, dtype=torch.float64),
        a=torch.from_numpy(log_decay).view(1, L, 1),
        lam=torch.full((1, L, 1), lam, dtype=torch.float64).logit(),
        theta=torch.full((1, L, 1), math.atanh(THETA / math.pi), dtype=torch.float64),
        state=start, step="activated", decay="log_decay", norm="normalised",
    )  # fmt: skip
    return float(y[0, -1, 0, 0])


def measured_order(integral: Integral, results: list[float]) -> float:
    """The order in the limit of small steps, from the fall of the error at each halving.

    log2 of that fall is the order + O(D): two of them extrapolate to the order + O(D^2).
    """
    errors = [abs(y - exact(integral)) for y in results]
    falls = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    return 2 * falls[-1] - falls[-2]


def step_integrals(integral: Integral, steps: int) -> np.ndarray:
    """The integral of A over each step."""
    return np.diff(integral(np.linspace(0, END, steps + 1)))


@pytest.mark.parametrize("decay", INTEGRALS)
@pytest.mark.parametrize(("lam", "order"), [(1.0, 1), (0.5, 2), (0.75, 1), (0.0, 1)])
def test_order_is_that_of_the_quadrature_rule(decay: str, lam: float, order: int) -> None:
    """The error falls as D for lam = 1 (and any lam but 1/2), and as D^2 for lam = 1/2."""
    integral = INTEGRALS[decay]
    results = [discretised(step_integrals(integral, n), lam) for n in STEPS]
    assert measured_order(integral, results) == pytest.approx(order, abs=0.02)
    assert abs(results[-1] - exact(integral)) < 10 * (END / STEPS[-1]) ** order


def test_decay_sampled_at_the_end_of_a_step_is_first_order() -> None:
    """With A_t D_t in place of the integral of a varying A, lam = 1/2 cannot save the order."""
    integral = INTEGRALS["varying"]
    results = []
    for n in STEPS:
        t = np.linspace(0, END, n + 1)[1:]
        results.append(discretised((-1.5 + np.cos(2 * t) / 2) * END / n, 0.5))
    assert measured_order(integral, results) == pytest.approx(1, abs=0.02)


def test_a_fresh_sequence_is_first_order_in_its_first_step() -> None:
    """A fresh sequence has no input before its first token: the trapezoid there loses its left end.

    The error is then half a step of x(0) = 1, however small the rest.
    """
    integral = INTEGRALS["constant"]
    results = [discretised(step_integrals(integral, n), 0.5, input_at_0=False) for n in STEPS]
    assert measured_order(integral, results) == pytest.approx(1, abs=0.02)
