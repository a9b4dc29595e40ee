"""Triton autotuners of other libraries: each rival at its own best, without minutes of waiting.

Their keys often leave out the batch and the length, so a kernel tuned for one problem would be
timed on all others with that choice. `forget` makes each problem be tuned for itself. What that
costs is compiling, which Triton does config by config: here all configs of a kernel are compiled at
once in threads, before they are compared. A rehearsal compares nothing: many of them share a GPU.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from os import cpu_count
from typing import Any

import triton
from triton.runtime import Autotuner, driver

from .. import peers

WARM_UP_MS, MEASURED_MS = 5, 20  # for each config, of Triton's 25 and 100: a choice, not a record


def forget(package: str) -> None:
    """Let every autotuned kernel of a package, as far as imported, choose anew."""
    for tuner in tuners(package):
        if "prune_configs" not in vars(tuner):
            tuner.prune_configs = partial(_compiled, tuner, tuner.prune_configs)
            tuner.do_bench = _compare
        tuner.cache.clear()


def tuners(package: str) -> Iterator[Any]:
    """The autotuned kernels in the imported modules of a package, each once."""
    found: dict[int, Any] = {}
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            for value in vars(module).values():
                tuner = _tuner(value)
                if tuner is not None:
                    found[id(tuner)] = tuner
    yield from found.values()


def _tuner(kernel: Any) -> Any:
    """The autotuner among the decorators of a kernel; None if there is none."""
    while kernel is not None and not isinstance(kernel, Autotuner):
        kernel = (
            getattr(kernel, "fn", None) if type(kernel).__module__.startswith("triton") else None
        )
    return kernel


def _compiled(tuner: Any, prune: Any, kwargs: dict[str, Any]) -> list[Any]:
    """The configs to compare, compiled; Triton calls it before it compares them."""
    configs: list[Any] = prune(kwargs)
    if hasattr(triton, "AsyncCompileMode"):
        launch = {name: value for name, value in kwargs.items() if name != "warmup"}
        with (
            ThreadPoolExecutor(cpu_count()) as pool,
            triton.AsyncCompileMode(pool, ignore_errors=True),
        ):
            for config in configs:
                tuner.fn.run(*tuner.nargs.values(), **launch, **config.all_kwargs(), warmup=True)
    return configs


def _compare(launch: Any, quantiles: Any) -> Any:
    if peers.rehearsing:  # each config has been compiled, or is by this launch
        launch()
        return [1.0] * len(quantiles)
    return driver.active.get_benchmarker()(
        launch, warmup=WARM_UP_MS, rep=MEASURED_MS, quantiles=quantiles
    )
