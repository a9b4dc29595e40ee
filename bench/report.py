"""Hands records and results to the reports, which stand above this package.

They are looked up by name and only when asked for: reports import bench, never the other way round.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console

from .compare import Case, Comparison
from .fields import Decision


def write_report(page: Console, paths: Sequence[Path], out: Path) -> None:
    """Make tables, plots and the page from record files, and print where they are."""
    written = import_module("mamba3_bench.reports.main").write(list(paths), out)
    page.print(
        f"report: {written[-1]}, and {len(written) - 1} tables and figures beside it",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def show_report(page: Console, paths: Sequence[Path]) -> None:
    """Print the rows of record files, their averages and every reason."""
    import_module("mamba3_bench.reports.main").show(list(paths), page)


def write_tuning(decisions: Sequence[Decision], out: Path) -> Path:
    """Make the page of a tuning; returns its path."""
    page: Path = import_module("mamba3_bench.reports.tuning").write(decisions, out)
    return page


def show_comparison(page: Console, found: Comparison) -> None:
    """Print a comparison."""
    import_module("mamba3_bench.reports.comparison").show(found, page)


def comparison_text(found: Comparison, form: str, passing: Sequence[Case]) -> str:
    """A comparison as `markdown` or `json`."""
    module = import_module("mamba3_bench.reports.comparison")
    text = module.as_markdown(found) if form == "markdown" else module.as_json(found, passing)
    return str(text)
