"""Modules outside the package that register more implementations: by file or by module name."""

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def load(plugins: Iterable[str]) -> None:
    """Import each plugin; a name that ends in .py is a file.

    Raises ImportError with the plugin's name.
    """
    for plugin in plugins:
        if plugin.endswith(".py"):
            _load_file(Path(plugin))
        else:
            importlib.import_module(plugin)


def _load_file(path: Path) -> None:
    name = f"mamba3_bench_plugin_{path.stem}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"plugin {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
