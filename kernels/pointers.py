"""The tensors of a call as a kernel gets them: tuples of pointers, None for an absent one."""

from typing import Any, NamedTuple


class Inputs(NamedTuple):
    """`tensors.Inputs`: pointers, or what belongs to them one by one, such as strides."""

    x: Any
    b: Any
    c: Any
    dt: Any
    a: Any
    lam: Any
    theta: Any
    z: Any


class Params(NamedTuple):
    """`tensors.Params`."""

    dt_bias: Any
    b_norm: Any
    c_norm: Any
    b_bias: Any
    c_bias: Any
    d: Any
    mimo_x: Any
    mimo_z: Any
    mimo_o: Any
    out_norm: Any


class State(NamedTuple):
    """`tensors.State`."""

    phi: Any
    h: Any
    k: Any
    x: Any
