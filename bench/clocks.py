"""SM clock and throttle reasons of a GPU, through NVML if it is there; nothing is ever set."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

# NVML's bits for clocks held down by heat or by a failing supply. The power cap (0x4) is not among
# them: a kernel that meets it meets it every time, and the recorded clock shows it.
THROTTLED = {
    0x08: "hardware slowdown",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at the clocks; empty where NVML is missing."""

    sm_mhz: float | None = None
    throttled: tuple[str, ...] = ()


class Clocks:
    """Reads one GPU, found by its UUID: NVML does not follow CUDA_VISIBLE_DEVICES."""

    def __init__(self, device: torch.device) -> None:
        """Find the GPU; without NVML every reading is empty."""
        self._nvml: Any = None
        self._handle: Any = None
        with suppress(ImportError):
            import pynvml

            with suppress(pynvml.NVMLError):
                pynvml.nvmlInit()
                uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
                self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                self._nvml = pynvml

    def read(self) -> Reading:
        """The clock now, and why it is held down."""
        nvml = self._nvml
        if nvml is None:
            return Reading()
        clock, reasons = None, 0
        with suppress(nvml.NVMLError):
            clock = float(nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM))
        with suppress(nvml.NVMLError):
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle)
        return Reading(clock, tuple(name for bit, name in THROTTLED.items() if reasons & bit))
