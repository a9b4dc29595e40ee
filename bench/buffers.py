"""The buffers behind a call: their bytes, putting them back, comparing them bit by bit."""

import torch
from torch import Tensor

from ..kernels.family import Call


def touched_bytes(call: Call) -> int:
    """Bytes that a run of the call reads or writes, each counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in call.tensors().values())


def allocated_bytes(call: Call) -> int:
    """Bytes that a clone of the call takes, gaps between the slices of a projection included."""
    storages = (tensor.untyped_storage() for tensor in call.tensors().values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def restore(call: Call, source: Call) -> None:
    """Copy every tensor of `source`, a call of the same problem, into the buffers of `call`."""
    copied = set()
    for tensor, fresh in zip(call.tensors().values(), source.tensors().values(), strict=True):
        address = tensor.untyped_storage().data_ptr()
        if address not in copied:
            whole_storage(tensor).copy_(whole_storage(fresh))
            copied.add(address)


def whole_storage(tensor: Tensor) -> Tensor:
    """The bytes of the storage that a tensor is a view of."""
    view = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return view.set_(tensor.untyped_storage())


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Bitwise equality: NaN equals the same NaN, and 0 is not -0."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    kind = integers[left.element_size()]
    return torch.equal(left.view(kind), right.view(kind))


def differing(left: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    """Names of the outputs of two runs that are not equal bit for bit."""
    return [name for name, tensor in left.items() if not same_bits(tensor, right[name])]


def snapshot(call: Call) -> dict[str, Tensor]:
    """Copies of the outputs of a call."""
    return {name: tensor.clone() for name, tensor in call.outputs().items()}
