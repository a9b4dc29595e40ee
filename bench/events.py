"""A span of device time between two CUDA events."""

from collections.abc import Callable
from typing import Self

import torch


class Span:
    """Two events around some work queued on a stream."""

    def __init__(self) -> None:
        """Make the events; they are recorded by `around`."""
        self._before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    @classmethod
    def around(cls, queue: Callable[[], object]) -> Self:
        """Queue some work between the events, on the current stream, without waiting for it."""
        span = cls()
        span._before.record()
        queue()
        span._after.record()
        return span

    def seconds(self) -> float:
        """The device time between the events, once the stream was waited for."""
        return float(self._before.elapsed_time(self._after)) * 1e-3


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream beside the default one, as capture needs it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
