"""What `mamba3-bench selftest` found, for a report."""

from collections.abc import Iterable
from pathlib import Path

from ..bench import budget
from ..bench.budget import SelfTest
from .machines import source


def found(record_paths: Iterable[Path]) -> list[SelfTest]:
    """The self-tests that lie beside some record files; raises SelfTestError for a broken one."""
    paths = dict.fromkeys(path.with_name(budget.FILE) for path in record_paths)
    return [SelfTest.read(path) for path in paths if path.is_file()]


def facts(one: SelfTest) -> list[tuple[str, str]]:
    """Name and finding of each part, the machine first."""
    environment = one.environment
    where = environment.get("gpu") or environment.get("cpu")
    machine = ", ".join(filter(None, (where, environment.get("date"), source(environment))))
    return [("machine", machine), *budget.facts(one)]
