"""Random numbers from a seed by integer arithmetic alone: the same bits on every device.

A worker, a test and a reader's own machine draw identical tensors, each where it needs them.
The numbers come from a counter through SplitMix64 (Steele, Lea and Flood, 2014).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as int64
MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
BLOCK = {"cuda": 2**26, "cpu": 2**16}  # numbers made at a time: 0.5 GiB of temporaries, or a cache


class Draws:
    """A stream of numbers; every call goes on where the one before stopped."""

    def __init__(self, seed: int, device: torch.device) -> None:
        """Begin the stream of a seed. On the device `meta` tensors have shapes alone."""
        self.device = device
        self.position = (seed % 2**31) << 32

    def normal(self, *shape: int) -> Tensor:
        """float32, mean 0, variance 1: the sum of four uniform 16-bit numbers, within 3.5 sigma."""
        scale = 1 / math.sqrt((2**32 - 1) / 3)
        return self._blocks(shape, lambda z: (_halves(z) - 131070.0) * scale)

    def uniform(self, *shape: int) -> Tensor:
        """float32 in [0, 1)."""
        return self._blocks(shape, lambda z: (z & 0xFFFFFF).float() * 2**-24)

    def permutation(self, size: int) -> Tensor:
        """0 to size - 1 in random order, int64, on the CPU."""
        here, self.device = self.device, torch.device("cpu")
        order = self.uniform(size).argsort(stable=True)
        self.device = here
        return order

    def _blocks(self, shape: tuple[int, ...], function: Callable[[Tensor], Tensor]) -> Tensor:
        out = torch.empty(math.prod(shape), dtype=torch.float32, device=self.device)
        if self.device.type != "meta":
            for part in torch.split(out, BLOCK[self.device.type]):
                counter = torch.arange(
                    self.position, self.position + part.numel(), device=self.device
                )
                part.copy_(function(_mix(counter)))
                self.position += part.numel()
        return out.view(shape)


def _mix(counter: Tensor) -> Tensor:
    """SplitMix64 of int64 counters; `>>` keeps the sign, so the bits above are cut off."""
    z = counter.mul_(GOLDEN)
    z = z.bitwise_xor_((z >> 30) & 0x3FFFFFFFF).mul_(MIX_1)
    z = z.bitwise_xor_((z >> 27) & 0x1FFFFFFFFF).mul_(MIX_2)
    return z.bitwise_xor_((z >> 31) & 0x1FFFFFFFF)


def _halves(z: Tensor) -> Tensor:
    """The sum of the four 16-bit parts, exact in float32."""
    total = z & 0xFFFF
    for shift in (16, 32, 48):
        total += (z >> shift) & 0xFFFF
    return total.float()
