"""Hands record files to the reports, which stand above this package."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console


def write_report(page: Console, paths: Sequence[Path], out: Path) -> None:
    """Make tables, plots and the page from record files, and print where they are."""
    # looked up by name and only when asked for: reports import bench, never the other way round
    write = import_module("mamba3_bench.reports.main").write
    for path in write(list(paths), out):
        page.print(str(path), highlight=False, soft_wrap=True)
