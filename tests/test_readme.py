"""What README and docs say is true: examples run, commands parse, files exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mamba3_bench.bench import records
from mamba3_bench.bench.cli import parser
from mamba3_bench.bench.compare import EXIT

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^mamba3-bench (.*?)(?: *#.*)?$", re.MULTILINE)
COMMANDS = sorted({line for page in PAGES for line in COMMAND.findall(page.read_text())})


def test_example_runs(tmp_path: Path) -> None:
    """The Python example works as printed, on a CPU, away from the sources."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([2, 100, 4, 64]) torch.Size([2, 4, 64])\n"


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str) -> None:
    """Each command line is one that the program takes."""
    parser().parse_args(shlex.split(line))


@pytest.mark.parametrize("name", ["add-a-kernel", "add-a-rival"])
def test_plugins_of_the_docs_are_right_and_timed(name: str, tmp_path: Path) -> None:
    """The file that a page shows passes the first sweep that stands below it, gate included."""
    page = (ROOT / "docs" / f"{name}.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    plugin = re.match(r"# ((\w+)\.py)\n", code)
    assert plugin
    (tmp_path / plugin[1]).write_text(code)
    line = next(line for line in COMMAND.findall(page) if line.startswith("sweep"))
    line += f" --budget 0.01 --out {tmp_path} --device cpu"
    command = [sys.executable, "-m", "mamba3_bench", *shlex.split(line)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = records.read([tmp_path / "records.jsonl"])
    assert {row.backend: row.times is not None for row in rows} == {plugin[2]: True, "torch": True}


def test_exit_codes_of_the_docs() -> None:
    """The table of verdicts is the one of the program."""
    page = (ROOT / "docs" / "comparing.md").read_text()
    table = re.findall(r"^\| ([a-z ]+) \|.*\| (\d+) \|$", page, re.MULTILINE)
    assert {case: int(code) for case, code in table} == EXIT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link names a file or folder that is there."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_tree_is_the_tree() -> None:
    """Each folder and file in the README's tree exists."""
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL)
    assert tree
    folder = ""
    for line in tree[1].splitlines():
        name = line.split()[0]
        folder = "" if not line.startswith(" ") else folder
        assert (ROOT / folder / name).exists(), folder + name
        folder = folder or name


def test_first_use_script_explains_a_wrong_python() -> None:
    """./run with a Python that does not fit says which it needs and changes nothing."""
    before = (ROOT / ".venv").exists()
    environment = os.environ | {"PYTHON": "/nonexistent/python"}
    if before:
        pytest.skip("already set up here: no Python is looked for")
    done = subprocess.run(
        [ROOT / "run", "quick"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12" in done.stderr
    assert not (ROOT / ".venv").exists()
