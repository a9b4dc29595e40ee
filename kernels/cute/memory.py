"""What the CuTe kernels are handed, and how they reach it: bare pointers, offsets in elements."""

from typing import Any, NamedTuple

from cutlass import Float32, cute


class Scalars(NamedTuple):
    """What one token of one head weighs, float32."""

    step: Any  # D
    alpha: Any
    beta: Any
    gamma: Any


def at(pointer, index):
    """The value at an offset; None for an absent tensor."""
    if pointer is None:
        return None
    return cute.make_tensor(pointer + index, cute.make_layout(1))[0]


def put(pointer, index, value):
    """Store a value, rounded to the pointer's type."""
    cute.make_tensor(pointer + index, cute.make_layout(1))[0] = value.to(pointer.dtype)


def load(pointer, size: int) -> list[Any]:
    """`size` neighbouring values in float32, by the widest accesses that the alignment allows."""
    values = cute.make_rmem_tensor(size, pointer.dtype)
    cute.autovec_copy(cute.make_tensor(pointer, cute.make_layout(size)), values)
    return [Float32(values[i]) for i in range(size)]


def store(pointer, values: list[Any]) -> None:
    """Store neighbouring values, rounded to the pointer's type."""
    rounded = cute.make_rmem_tensor(len(values), pointer.dtype)
    for i, value in enumerate(values):
        rounded[i] = value.to(pointer.dtype)
    cute.autovec_copy(rounded, cute.make_tensor(pointer, cute.make_layout(len(values))))


def shift(pointer, offset):
    """pointer + offset, or None for an absent tensor."""
    return None if pointer is None else pointer + offset
