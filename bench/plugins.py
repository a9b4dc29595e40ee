"""Modules outside the package that register more implementations: by file or by module name."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path


def load(plugins: Iterable[str]) -> None:
    """Import each plugin; a name that ends in .py is a file.

    Raises ImportError, in one line with the plugin's name, whatever goes wrong in it.
    """
    for plugin in plugins:
        file = Path(plugin).resolve() if plugin.endswith(".py") else None
        if file is not None and not file.is_file():
            raise ImportError(f"plugin {plugin}: no such Python file")
        try:
            if file is None:
                importlib.import_module(plugin)
            else:
                _load_file(file)
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise ImportError(f"plugin {plugin}: {said}") from error


def _load_file(path: Path) -> None:
    """Import a file once, under a name of its own: another folder may have one of the same name."""
    where = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"mamba3_bench_plugin_{path.stem}_{where}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
