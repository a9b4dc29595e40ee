"""A bound call: its launch does the work again, on the call's present values, and no other's."""

import pytest
import torch
from torch import Tensor

from mamba3_bench.kernels.bound import Bound, Stages, tensors
from mamba3_bench.kernels.families.mamba2 import Problem
from mamba3_bench.kernels.family import make_call
from mamba3_bench.kernels.plain import PlainCall

CASE = Problem("mamba2.decode", 2, 1, 4, 2, 3, 8, torch.float32, torch.float32, has_state=True)


def prepare(call: PlainCall, config: object) -> dict[str, object]:
    """x in a layout of its own, the state as it lies, a plain number."""
    return {"x": call.inputs["x"].mT.contiguous(), "h": call.final["h"], "scale": 2.0}


def launch(x: Tensor, h: Tensor, scale: float) -> tuple[Tensor, list[Tensor]]:
    """A result of its own, and a state moved on in place, which it returns too."""
    h.add_(1)
    return scale * x.mT, [h]


def collect(call: PlainCall, arguments: dict[str, object], results: tuple[Tensor, object]) -> None:
    """Copy the result; the state is the call's."""
    call.y.copy_(results[0])


def test_launch_then_collect_writes_the_outputs(seed: int) -> None:
    """The result is copied; what is updated in place is the call's own."""
    call = make_call(CASE, seed)
    before = call.final["h"].clone()
    bound = Bound(call, None, Stages(prepare, launch, collect))
    bound.launch()
    bound.collect()
    assert torch.equal(call.y, 2 * call.inputs["x"])
    assert torch.equal(call.final["h"], before + 1)


def test_refresh_brings_other_values_into_the_same_buffers(seed: int) -> None:
    """Addresses stay, as a captured graph needs; views of the call are not copied."""
    call, other = make_call(CASE, seed), make_call(CASE, seed + 1)
    bound = Bound(call, None, Stages(prepare, launch, collect))
    bound.launch()
    addresses = [tensor.data_ptr() for tensor in tensors(bound.arguments)]
    for tensor, fresh in zip(call.tensors().values(), other.tensors().values(), strict=True):
        tensor.copy_(fresh)
    bound.refresh()
    assert [tensor.data_ptr() for tensor in tensors(bound.arguments)] == addresses
    bound.launch()
    bound.collect()
    assert torch.equal(call.y, 2 * other.inputs["x"])


def test_refresh_poisons_results_but_no_argument(seed: int) -> None:
    """A launch that does not happen leaves NaN, not the results of the one before."""
    call = make_call(CASE, seed)
    bound = Bound(call, None, Stages(prepare, launch, collect))
    bound.launch()
    bound.refresh()
    bound.collect()
    assert call.y.isnan().all()
    assert not call.final["h"].isnan().any()
    assert not any(tensor.isnan().any() for tensor in tensors(bound.arguments))


@pytest.mark.parametrize("nest", [{"a": [torch.zeros(1), (torch.ones(1), None, 3)]}])
def test_tensors_are_found_in_any_nest(nest: object) -> None:
    """In order, and nothing else."""
    assert [float(tensor) for tensor in tensors(nest)] == [0.0, 1.0]
