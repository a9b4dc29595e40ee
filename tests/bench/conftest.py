"""What the plugins of one file of tests register ends with it: the next sees our backends alone."""

import sys
from collections.abc import Iterator

import pytest

from mamba3_bench.bench import peers
from mamba3_bench.kernels import registry


@pytest.fixture(autouse=True, scope="module")
def forgotten() -> Iterator[None]:
    """Plugins load into the process that runs them as well as into its workers."""
    peers.register()
    before = set(registry._added)
    yield
    for name in set(registry._added) - before:
        for known in (registry._registered, registry._added, registry._rivals):
            known.pop(name, None)
    for name in [name for name in sys.modules if name.startswith("mamba3_bench_plugin_")]:
        del sys.modules[name]
    registry.unavailable.cache_clear()
