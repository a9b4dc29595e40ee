"""What one call teaches the next: how a call went is remembered by the facts it rests on.

The facts are the arguments that are no tensors and, of each tensor, its class, dtype, device, shape
and strides. They decide everything that validation and the choice of an implementation find out,
which takes 200 us and more; PyTorch's guards compare them all, exactly, in 2 us for 22 tensors
(reading them in Python takes 10). A tensor changed in place, given other data or left out is
noticed like any other. Addresses are no facts: every launch reads them.

What is remembered holds no tensor.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .call import Call, y_shape
from .problem import Problem

# A PyTorch that keeps its guards elsewhere is no error: every call is then validated in full.
TENSOR_GUARDS: Any = getattr(torch._C._dynamo.guards, "TensorGuards", None)

MOST_KEYS = 4096
MOST_OF_A_KEY = 8  # calls that differ in strides, dims of the state or device alone

Launch = Callable[[Call], None]
Key = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A validated problem, what launches it, and whether some tensors have its facts."""

    problem: Problem
    y_shape: tuple[int, ...]
    launch: Launch
    fits: Callable[..., bool]


_plans: dict[Key, tuple[Plan, ...]] = {}  # latest first; replaced whole, so that any thread reads
_lock = threading.Lock()  # of who writes


def key_of(arguments: Key, tensors: Sequence[Tensor | None]) -> Key:
    """What plans are kept under: other arguments, the batch, and which tensors are there."""
    # not looked at: an x without shape is an AttributeError, which ops explains
    return (*arguments, tensors[0].shape, *map(type, tensors))  # type: ignore[union-attr]


def find(key: Key, tensors: Sequence[Tensor | None]) -> Plan | None:
    """The plan of an earlier call with the same facts, or None."""
    found = _plans.get(key)
    if found is None:
        return None
    present = [tensor for tensor in tensors if tensor is not None]
    for plan in found:
        if plan.fits(*present):
            return plan
    return None


def remember(key: Key, tensors: Sequence[Tensor | None], problem: Problem, launch: Launch) -> None:
    """Keep what a call with these facts found out; the oldest is forgotten when there is much."""
    if TENSOR_GUARDS is None:
        return
    present = [tensor for tensor in tensors if tensor is not None]
    guards = TENSOR_GUARDS(*present, dynamic_dims_sizes=None, dynamic_dims_strides=None)
    if not guards.check(*present):
        return  # one tensor under two names, which guards refuse: validated at each call
    plan = Plan(problem, y_shape(problem), launch, guards.check)
    with _lock:
        if key not in _plans and len(_plans) >= MOST_KEYS:
            del _plans[next(iter(_plans))]
        _plans[key] = (plan, *_plans.get(key, ()))[:MOST_OF_A_KEY]


def forget() -> None:
    """Drop all plans: the implementations have changed."""
    with _lock:
        _plans.clear()
