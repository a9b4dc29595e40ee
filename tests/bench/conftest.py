"""What tests of runs share: plugins end with the file that registers them; a silent observer."""

import sys
from collections.abc import Iterator

import pytest

from mamba3_bench.bench import peers
from mamba3_bench.bench.jobs import Job, Stage
from mamba3_bench.bench.ledger import Slot
from mamba3_bench.bench.records import Row
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


class Silent:
    """Watches a run and tells nobody."""

    def planned(self, total: int, recorded: int) -> None:
        """Entries asked for."""

    def stage(self, slot: Slot, job: Job, stage: Stage) -> None:
        """What a worker does now."""

    def row(self, row: Row) -> None:
        """A row was finished."""


@pytest.fixture(scope="session")
def silent() -> Silent:
    """An observer for runs that are only looked at afterwards."""
    return Silent()
