"""The grid of a run: from axes to problems."""

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..kernels.errors import OptionError
from ..kernels.problem import OPTIONAL, OpName, Options, Problem

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "tf32": torch.float32,  # float32 activations, products rounded to tf32
}
MIMO = ("mimo_x", "mimo_z", "mimo_o")
TYPICAL = ("z", "dt_bias", "b_norm", "c_norm", "b_bias", "c_bias", "d")


@dataclass(frozen=True, slots=True)
class Axes:
    """The values of each axis; a run takes their product.

    pairing `official`: interleaved for rank 1 and half for MIMO, as the official kernels have it.
    optional: the optional tensors that are present; those of MIMO come by themselves for rank > 1.
    """

    op: OpName = "prefill"
    dtype: tuple[str, ...] = ("bf16",)
    state_dtype: tuple[str, ...] = ("fp32",)
    state: tuple[int, ...] = (128,)
    rank: tuple[int, ...] = (1,)
    heads: tuple[int, ...] = (64,)
    head_size: tuple[int, ...] = (64,)
    groups: tuple[int, ...] = (1,)
    angles: tuple[str, ...] = ("quarter",)
    pairing: tuple[str, ...] = ("official",)
    decay: tuple[str, ...] = ("heavy_tail",)
    step: tuple[str, ...] = ("softplus",)
    norm: tuple[str, ...] = ("rms",)
    initial_state: tuple[str, ...] = ("no",)
    optional: tuple[str, ...] = TYPICAL
    batch: tuple[int, ...] = (1,)
    length: tuple[int, ...] = (2048,)


def problems(axes: Axes) -> list[Problem]:
    """Every problem of the grid, those of equal dims and dtypes next to each other.

    Raises OptionError for values that do not go together.
    """
    if axes.op == "decode":
        axes = replace(axes, length=(1,), initial_state=("yes",))
    varied = [f.name for f in fields(axes) if f.name not in ("op", "optional")]
    found = []
    for values in itertools.product(*(getattr(axes, name) for name in varied)):
        found.append(_problem(axes, dict(zip(varied, values, strict=True))))
    return list(dict.fromkeys(found))


def _problem(axes: Axes, at: dict[str, Any]) -> Problem:
    H, G, N, R = at["heads"], at["groups"], at["state"], at["rank"]
    if H % G:
        raise OptionError("--groups", f"divisors of heads = {H}", str(G), "change either axis")
    if N % 4:
        raise OptionError("--state", "multiples of 4", str(N), "the angles turn a quarter of it")
    pairing = at["pairing"]
    if pairing == "official":
        pairing = "interleaved" if R == 1 else "half"
    present = set(axes.optional) | (set(MIMO) if R > 1 else set())
    if at["norm"] == "normalised":
        present -= {"b_norm", "c_norm"}
    if at["step"] == "activated":
        present -= {"dt_bias"}
    return Problem(
        op=axes.op,
        B=at["batch"],
        L=at["length"],
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
        has_state=at["initial_state"] == "yes",
    )
