"""The few things that timing needs of a GPU: capture, replay, events, waiting, its sizes."""

from collections.abc import Callable
from typing import Self

import torch

from .clocks import Clocks, Reading

Queue = Callable[[], object]  # queues work on the current stream without waiting for it


class Span:
    """Two events around some work queued on a stream."""

    def __init__(self) -> None:
        """Make the events; `around` records them."""
        self._before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    @classmethod
    def around(cls, queue: Queue) -> Self:
        """Queue some work between the events, on the current stream."""
        span = cls()
        span._before.record()
        queue()
        span._after.record()
        return span

    def seconds(self) -> float:
        """The device time between the events, once the stream was waited for."""
        return float(self._before.elapsed_time(self._after)) * 1e-3


class Gpu:
    """One CUDA device, with a stream of its own to capture and replay on."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream and look up the device's clocks."""
        self.device = device
        self.l2_bytes: int = torch.cuda.get_device_properties(device).L2_cache_size
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._clocks = Clocks(device)

    def free_bytes(self) -> int:
        """Memory that can still be allocated, what torch keeps in reserve included."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]

    def wait(self) -> None:
        """Wait for everything queued on the device."""
        torch.cuda.synchronize(self.device)

    def on_stream(self, queue: Queue) -> None:
        """Run work eagerly on the capturing stream and wait: what is lazy is done then."""
        with torch.cuda.stream(self._stream):
            queue()
        self.wait()

    def capture(self, queue: Queue) -> Queue:
        """Record work in a CUDA graph without running it; returns its replay.

        The memory that the work allocates belongs to the graph and lives as long as it.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            queue()
        return graph.replay

    def span(self, queue: Queue) -> Span:
        """Queue work on the stream between two events."""
        with torch.cuda.stream(self._stream):
            return Span.around(queue)

    def queue(self, queue: Queue) -> None:
        """Queue work on the stream."""
        with torch.cuda.stream(self._stream):
            queue()

    def reading(self) -> Reading:
        """The clocks now."""
        return self._clocks.read()
