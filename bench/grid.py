"""The grid of a run: from axes to problems."""

import itertools
from dataclasses import dataclass

from ..kernels.family import Problem, family

TYPICAL = ("z", "dt_bias", "b_norm", "c_norm", "b_bias", "c_bias", "d")


@dataclass(frozen=True, slots=True)
class Axes:
    """The values of each axis; a run takes the product of those that the op's family varies on.

    pairing `official`: interleaved for rank 1 and half for MIMO, as the official kernels have it.
    optional: the optional tensors that are present; those of MIMO come by themselves for rank > 1.
    """

    op: str = "prefill"
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
    of = family(axes.op)
    found = []
    for values in itertools.product(*(getattr(axes, name) for name in of.axes)):
        at = dict(zip(of.axes, values, strict=True)) | {"optional": axes.optional}
        found.append(of.problem(axes.op, at))
    return list(dict.fromkeys(found))
