"""The adapters on stand-ins for the libraries that they fit to our calls."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from mamba3_bench.bench import peers
from mamba3_bench.kernels import registry

_spec = importlib.util.spec_from_file_location(
    "libraries", Path(__file__).with_name("libraries.py")
)
libraries = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(libraries)


@pytest.fixture(scope="module", autouse=True)
def stand_ins():
    """The stand-ins in place of the real libraries, and the adapters imported over them."""
    with pytest.MonkeyPatch.context() as patch:
        libraries.install(patch)
        forget_adapters()
        peers.register()
        yield
        forget_adapters()


def forget_adapters():
    """Nothing of the adapters is imported or registered any more."""
    for name in [name for name in sys.modules if name.startswith(f"{peers.__name__}.")]:
        del sys.modules[name]
    for known in peers.PEERS:
        registry._registered.pop(known, None)
        registry._added.pop(known, None)
        registry._rivals.pop(known, None)
    registry.unavailable.cache_clear()


@pytest.fixture
def adapter():
    """Looks up a module of the adapters by its name."""
    return lambda name: importlib.import_module(f"{peers.__name__}.{name}")
