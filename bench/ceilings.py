"""What this GPU can do at most, measured in the run itself: nothing is read from a data sheet."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from .gpu import Gpu, Queue
from .records import Times

COPY_BYTES = 1 << 30
MATMULS = {"bfloat16": 8192, "float16": 8192, "tf32": 8192, "float32": 4096}  # dtype: edge
# A kernel that mostly reads is spared the turn-arounds of DRAM that a copy pays: at the pins an
# H100 has 3.35 TB/s where a copy reaches 3.0.
READ_MARGIN = 1.15
FLOOR_MARGIN = 0.8


def measure(gpu: Gpu) -> dict[str, float]:
    """Copy rate, matmul rate by dtype, and the time of an empty kernel.

    copy_bytes_per_s: device to device, read and written bytes both counted.
    matmul_flops_per_s.<dtype>: of square products. kernel_floor_us: of one kernel among many that
    write one element each.
    """
    source = torch.zeros(COPY_BYTES // 4, dtype=torch.float32, device=gpu.device)
    target = torch.empty_like(source)
    # the driver's copy and a copying kernel: now the one, now the other is faster
    copies = (partial(target.copy_, source), partial(torch.neg, source, out=target))
    best = min(event_time(copy, gpu) for copy in copies)
    found = {"copy_bytes_per_s": 2 * COPY_BYTES / best}
    del source, target, copies
    for name, edge in MATMULS.items():
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        left, right = (torch.randn(edge, edge, device=gpu.device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        with float32_products("tf32" if name == "tf32" else "ieee"):
            seconds = event_time(partial(torch.mm, left, right, out=out), gpu)
        found[f"matmul_flops_per_s.{name}"] = 2 * edge**3 / seconds
        del left, right, out
    found["kernel_floor_us"] = 1e6 * floor_time(gpu)
    torch.cuda.empty_cache()
    return found


def event_time(run: Queue, gpu: Gpu, samples: int = 20) -> float:
    """Median seconds of a run that is long beside its launch."""
    gpu.wait()
    spans = [gpu.span(run) for _ in range(samples + 3)]
    gpu.wait()
    return statistics.median(span.seconds() for span in spans[3:])


def floor_time(gpu: Gpu, kernels: int = 500) -> float:
    """Seconds of a kernel that writes one element, among many in a graph."""
    one = torch.zeros(1, device=gpu.device)

    def queue() -> None:
        for _ in range(kernels):
            one.fill_(1.0)

    gpu.on_stream(lambda: one.fill_(1.0))
    return event_time(gpu.capture(queue), gpu) / kernels


def too_fast(times: Times, nbytes: int, ceilings: dict[str, float]) -> str | None:
    """Why a time cannot be true, or None. FLOPs are no limit: they depend on the algorithm, and
    memory is none to a warm time.

    nbytes: what any implementation must move through memory.
    """
    floor = ceilings["kernel_floor_us"]
    for one in (times.cold, times.warm):
        if one is not None and one.median < FLOOR_MARGIN * floor:
            return f"faster than an empty kernel: {one.median:.3g} us against {floor:.3g} us"
    if times.cold is None:
        return None
    seconds = times.cold.median * 1e-6
    rate, limit = nbytes / seconds, ceilings["copy_bytes_per_s"]
    if rate > READ_MARGIN * limit:
        return (
            f"faster than memory: {nbytes} bytes in {times.cold.median:.3g} us are "
            f"{rate / 1e12:.3g} TB/s, a copy reaches {limit / 1e12:.3g}; the time is not kept"
        )
    return None


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """How float32 matrix products are computed inside: `tf32` or `ieee`."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision = before
