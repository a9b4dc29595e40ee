"""The key of a record: equal keys mean that the same thing was measured in the same place."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from .. import kernels, reference
from ..kernels import lookup, registry
from ..kernels.family import FAMILIES
from ..kernels.problem import OpName
from ..kernels.registry import MODULES, module_name
from .hardware import identity
from .jobs import Entry, Settings

# The measuring code itself: another gate or another timer is another measurement.
MEASURING = (
    "buffers.py",
    "ceilings.py",
    "clocks.py",
    "gate.py",
    "gpu.py",
    "graphs.py",
    "race.py",
    "rows.py",
    "sampler.py",
    "timing.py",
    "worker.py",
)


def key(entry: Entry, settings: Settings, environment: dict[str, Any], *, beside: str = "") -> str:
    """Hash of (source, config, problem, environment, seed, kind, repeat).

    beside: the match of an entry that meets others in several jobs of a run.
    """
    parts = {
        "source": source_hash(
            entry.problem.op, entry.backend, settings.plugins, entry.config is None
        ),
        "backend": entry.backend,
        "config": entry.config,
        "problem": entry.problem.as_dict(),
        "environment": identity(environment, entry.problem.op, entry.backend),
        "seed": settings.seed,
        "kind": settings.kind,
        "repeat": entry.repeat,
    }
    if entry.config is None and (tuned := os.environ.get(lookup.VARIABLE)):
        parts["tuned"] = tuned_hash(tuned)
    if beside:
        parts["beside"] = beside
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


@cache
def source_hash(op: OpName, backend: str, plugins: tuple[str, ...], choosing: bool = True) -> str:
    """Hash of the files that a backend's results stand on.

    Its own folder; the op interface and the op's family; reference and torch, which judge it; the
    measuring code. A plugin may register or replace anything, so its file counts for every backend.
    choosing: no config is named, so that tuned ones count.
    """
    # package paths, not rglob from the top: the folders of a source tree are links
    tops = [Path(path).resolve() for path in (*kernels.__path__, *reference.__path__)]
    folders = [*tops, tops[0] / "torch"]
    here = Path(__file__).resolve().parent
    files = [here / name for name in MEASURING]
    files.append(tops[0] / "families" / f"{FAMILIES[op]}.py")
    if (op, backend) in MODULES:
        folders.append((tops[0] / MODULES[op, backend].replace(".", "/")).parent)
    elif registry.is_rival(op, backend):
        folders.append(here / "peers")
    else:
        plugins = (*plugins, *filter(None, [module_name(op, backend)]))
    files += [file for folder in folders for file in folder.glob("*.py")]
    if choosing:
        files += list((tops[0] / "tuned").glob("*.json"))
    return _hash({*files, *(path for name in plugins if (path := source_file(name)))})


@cache
def tuned_hash(named: str) -> str:
    """What the variable for tuned configs names: `off`, or the hash of a folder's files."""
    return named if named == "off" else _hash(Path(named).glob("*.json"))


def source_file(plugin: str) -> Path | None:
    """The file of a plugin, given as a path or as a module name."""
    if plugin.endswith(".py"):
        return Path(plugin).resolve()
    try:
        spec = importlib.util.find_spec(plugin)
    except (ImportError, ValueError):  # a module made from a file: the file is named by itself
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _hash(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()
