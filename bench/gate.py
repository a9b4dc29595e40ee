"""The gate: whether a result is right, judged against the float64 recurrence.

Truth is the backend `reference` with float64 buffers, on the very inputs of the call (their values
as rounded to their dtypes), for a subset of the independent (batch, head) rows: the first and last
batch row and head always, others drawn from the seed, all of them if the problem is small. It is
kept on the host, out of a stray kernel's reach.

The yardstick is the backend `torch` on the same rows in the same dtypes: what a careful
implementation loses by computing in these dtypes. An output may be SAFETY = 2 times as far from the
truth, in relative L2 norm and in its largest element, because two summation orders of equal merit
differ by such a factor. The yardstick's error can be zero (a state that is a copy, L = 1), so some
units in the last place are granted beside it. Let u = eps/2 be the unit roundoff of the output's
own dtype, and K the number of roundings to that dtype that a right kernel may make on its way:
independent ones add up to sqrt(K) u ||out|| in L2, and at the worst element they may all go one
way, K u max|out|. For 16-bit outputs K = 2: an intermediate kept in that dtype, then the output,
for all else is float32. For float32 K = 8, since every operation of the formulas rounds (a change
of units, an activation, a product, a sum, ...); and what is rounded then includes the angles, up to
2 pi: an error of 2 pi u there turns q and k, and so moves every output, by that much of its norm.
The largest error of a small output says little about another right kernel's: y and h of a prefill,
sums of products of two rounded operands, are granted OPERANDS = 2 units of the operands' dtype
there. Their L2 bound stays sharp.

The rows outside the subset have no truth; there the yardstick is what a result is held against,
for it runs the whole call too. Each vector of an output (y of one token and head, a row of h, k, x,
one angle) may be off by GROSS of its norm, or of the output's mean norm if that is larger. A kernel
that is right on the subset is far below this everywhere; a wrong head or a skipped tile is far
above. A batch row as a whole may be off by ROW bounds: where both are right they are 1.5 bounds
apart at most over all rows, and one row may be unlike the others. Two cases are only checked to be
finite: all outputs of a call whose y has more than WHOLE elements, and y with out_norm, which
divides a token whose terms cancel by nearly nothing.
"""

import math
import random
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..kernels import registry
from ..kernels.family import Call, Problem, Rows
from .buffers import same_bits, whole_storage
from .records import Error

SAFETY = 2.0

# By bytes of the output's dtype: K, and the magnitude of what is rounded beside that of the output.
ROUNDINGS = {2: (2, 1.0), 4: (8, 2 * math.pi), 8: (8, 2 * math.pi)}
OPERANDS = 2
GROSS = 0.25
ROW = 4.0
WHOLE = 2**29  # elements of y that the yardstick may compute: some 10 GB of float32 on the way
RIVAL_L2 = 0.05  # a rival under this on every output is `inaccurate`, not `wrong`

# Elements of h that the truth may hold: an operation on them still costs about its launch.
TRUTH_ELEMENTS = {"cuda": 2**19, "cpu": 2**15}
# Numbers that it may make of all tokens together: 1 GiB of float64, a few times over.
TRUTH_NUMBERS = 2**27


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says of one run."""

    status: Literal["ok", "inaccurate", "wrong"]
    reason: str  # empty for ok
    errors: dict[str, Error]


class Gate:
    """The truth and the bounds of one call, to judge any number of runs on clones of it."""

    def __init__(self, pristine: Call, seed: int) -> None:
        """Compute truth and yardstick; `pristine` is kept and must never be run itself."""
        self.pristine = pristine
        self.rows = choose_rows(pristine, seed)
        self.whole = self._whole()
        truth = truth_of(pristine.take(self.rows))
        yardstick = run_yardstick(pristine.take(self.rows))
        self.truth = {name: result.cpu() for name, result in truth.results().items()}
        self.bounds = bounds_of(pristine, self.truth, yardstick.results())

    def judge(self, call: Call, *, rival: bool = False) -> Verdict:
        """Whether a clone of the call that was poisoned and run holds the right results."""
        faults = self._touched(call)
        off: dict[str, float] = {}
        if unwritten := self._unwritten(call):
            faults += unwritten
        else:
            gross, off = self._elsewhere(call)
            faults += gross
        errors = {}
        results = call.take(self.rows).results()
        for name, truth in self.truth.items():
            l2, largest = distance(results[name], truth)
            errors[name] = Error(l2, self.bounds[name][0], largest, self.bounds[name][1])
        beyond = [describe(name, error) for name, error in errors.items() if not within(error)]
        beyond += [
            f"{name}: a batch row is {l2:.2g} from the torch backend's ({ROW:.0f} bounds are "
            f"{ROW * self.bounds[name][0]:.2g})"
            for name, l2 in off.items()
            if not l2 <= ROW * self.bounds[name][0]
        ]
        if not faults and not beyond:
            return Verdict("ok", "", errors)
        farthest = [*(error.l2 for error in errors.values()), *off.values()]
        close = all(l2 < RIVAL_L2 for l2 in farthest)
        if rival and not faults and close:
            return Verdict("inaccurate", "; ".join(beyond), errors)
        return Verdict("wrong", "; ".join(faults + beyond), errors)

    def _touched(self, call: Call) -> list[str]:
        """What the run changed although it may only read it."""
        names = []
        whole, found = read_only(self.pristine), read_only(call)
        views, seen = self.pristine.tensors(), call.tensors()
        for there, storage in whole.items():
            if not same_bits(found[there], storage):
                hit = [name for name in there if not same_bits(seen[name], views[name])]
                names += hit or [f"what lies between {', '.join(there)}"]
        before, after = self.pristine.kept(), call.kept()
        for name, tensor in before.items():
            if not same_bits(after[name], tensor):
                names.append(f"{name} of rows that are not in state_indices")
        return [f"changed {', '.join(names)}, which it may only read"] if names else []

    def _unwritten(self, call: Call) -> list[str]:
        """Outputs that still hold NaN, or hold infinities, in any row."""
        faults = []
        for name, tensor in call.written().items():
            bad = int((~tensor.isfinite()).sum())
            if bad:
                faults.append(f"{name}: {bad} of {tensor.numel()} elements not finite")
        return faults

    def _whole(self) -> dict[str, Tensor]:
        """What the yardstick writes in every row; empty if the truth holds them all."""
        rows = len(self.pristine.batch_rows())
        if len(self.rows.batch) == rows and len(self.rows.heads) == self.pristine.problem.H:
            return {}
        if self.pristine.y.numel() > WHOLE:
            return {}
        found = run_yardstick(self.pristine.clone()).written()
        return {n: t for n, t in found.items() if n not in self.pristine.problem.unsteady}

    def _elsewhere(self, call: Call) -> tuple[list[str], dict[str, float]]:
        """Outputs with a vector that is far from the yardstick's, in any row; and of each other one
        the relative L2 distance of the batch row that is the farthest from it."""
        faults, rows = [], {}
        found = call.written()
        for name, expected in self.whole.items():
            truth, result = expected.float(), found[name].float()
            if name in self.pristine.problem.angles:
                truth, result = circle(truth), circle(result)
            off = torch.linalg.vector_norm(result - truth, dim=-1)
            norm = torch.linalg.vector_norm(truth, dim=-1)
            least = norm.square().mean().sqrt()
            bad = int((~(off <= GROSS * norm.clamp(min=least))).sum())
            if bad:
                faults.append(
                    f"{name}: {bad} of {off.numel()} vectors are not those of the torch backend"
                )
                continue
            apart, norms = (v.flatten(1).double().norm(dim=1) for v in (off, norm))
            least = norms.square().mean().sqrt()
            rows[name] = float((apart / norms.clamp(min=least or 1.0)).max())
        return faults, rows


def bounds_of(
    call: Call, truth: dict[str, Tensor], yardstick: dict[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """What each output of a call may be off, in L2 norm and in its largest element."""
    bounds = {}
    for name, result in yardstick.items():
        l2, largest = distance(result, truth[name])
        dtype = call.outputs()[name].dtype
        roundings, reach = ROUNDINGS[dtype.itemsize]
        unit = torch.finfo(dtype).eps / 2 * reach
        worst = roundings * unit
        if name in call.problem.product_sums:
            worst = max(worst, OPERANDS * operand_unit(call.problem))
        peak = float(truth[name].abs().max())
        bounds[name] = (
            SAFETY * l2 + math.sqrt(roundings) * unit,
            SAFETY * largest + worst * peak,
        )
    return bounds


def truth_of(call: Call) -> Call:
    """The call after the float64 reference ran it into float64 buffers, filled with NaN before."""
    wide = call.widened()
    wide.poison()
    registry.get(call.problem.op, "reference").run(wide, None)
    return wide


def operand_unit(problem: Problem) -> float:
    """Unit roundoff of what the operands of matrix products are rounded to."""
    if problem.matmul == "tf32":
        return 2.0**-11  # 10 explicit mantissa bits
    return float(torch.finfo(problem.dtype).eps) / 2


def run_yardstick(call: Call) -> Call:
    """The call after the torch backend ran it, filled with NaN before."""
    call.poison()
    yardstick = registry.get(call.problem.op, "torch")
    yardstick.run(call, yardstick.default(call.problem, call.y.device))
    return call


def circle(angles: Tensor) -> Tensor:
    """Angles as (cos, sin)."""
    return torch.stack((angles.cos(), angles.sin()), -1)


def choose_rows(call: Call, seed: int) -> Rows:
    """The batch rows and heads to verify: first and last always, others from the seed."""
    problem = call.problem
    limit = TRUTH_ELEMENTS["cuda" if call.y.is_cuda else "cpu"] // problem.row_elements
    limit = min(limit, TRUTH_NUMBERS // max(problem.row_numbers, 1))
    batch = call.batch_rows()
    B, H = len(batch), problem.H
    heads = min(H, max(2, math.isqrt(limit)))  # as many of either, as far as there are
    rows = min(B, max(2, limit // heads))
    heads = min(H, max(2, limit // rows))
    rng = random.Random(seed)
    return Rows(
        batch=tuple(batch[i] for i in _ends_and(B, rows, rng)),
        heads=tuple(_ends_and(H, heads, rng)),
    )


def _ends_and(size: int, count: int, rng: random.Random) -> list[int]:
    """First and last of range(size), and others to make `count`, in order."""
    if count >= size:
        return list(range(size))
    return sorted([0, size - 1, *rng.sample(range(1, size - 1), count - 2)])


def read_only(call: Call) -> dict[tuple[str, ...], Tensor]:
    """The storages that the call may only read, by the names of their tensors: with the gaps
    between those, for other slices of a projection live there."""
    outputs = call.outputs()
    shared: dict[int, list[str]] = {}
    storages = {}
    for name, tensor in call.tensors().items():
        if name not in outputs:
            address = tensor.untyped_storage().data_ptr()
            shared.setdefault(address, []).append(name)
            storages[address] = whole_storage(tensor)
    return {tuple(shared[address]): storage for address, storage in storages.items()}


def distance(result: Tensor, truth: Tensor) -> tuple[float, float]:
    """(relative L2 norm, largest element) of result - truth, both float64; NaN if any is NaN.

    It is computed where the result is: the host takes a quarter of a second for 2^25 elements.
    """
    truth = truth.to(result.device)
    difference = result - truth
    return float(difference.norm()) / _norm(truth), float(difference.abs().max())


def _norm(truth: Tensor) -> float:
    """The norm to divide by; a truth of zeros is compared absolutely."""
    return float(truth.norm()) or 1.0


def within(error: Error) -> bool:
    """Whether both norms are within their bounds; NaN is not."""
    return error.l2 <= error.l2_bound and error.largest <= error.largest_bound


def describe(name: str, error: Error) -> str:
    """One output beyond its bounds, in words."""
    return (
        f"{name}: relative L2 error {error.l2:.2g} (bound {error.l2_bound:.2g}), "
        f"largest {error.largest:.2g} (bound {error.largest_bound:.2g})"
    )
