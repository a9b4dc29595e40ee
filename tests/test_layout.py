"""The sources lie in four top-level folders; only the package `mamba3_bench` is installed."""

import os
import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import mamba3_bench

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bench", "kernels", "reference", "reports")


def child(code: str, cwd: Path) -> str:
    """What a fresh interpreter prints, started in a folder without the sources."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def installed() -> list[str]:
    """The files of the package that an installation copied; none if it is editable."""
    files = distribution("mamba3-bench").files or []
    names = [str(file) for file in files if file.suffix != ".pyc"]
    return [name for name in names if name.startswith("mamba3_bench/")]


def test_kernels_is_no_top_level_package() -> None:
    """With kernels/__init__.py, `import kernels` at the root would hide another project's."""
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("folder", FOLDERS)
def test_link_is_relative(folder: str) -> None:
    """A clone anywhere keeps working: each link names its folder by a relative path."""
    link = ROOT / "src" / "mamba3_bench" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../../{folder}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_from_anywhere(folder: str, tmp_path: Path) -> None:
    """Each folder imports as mamba3_bench.<folder>, with the root nowhere near."""
    code = f"import mamba3_bench.{folder} as module; print(module.__name__)"
    assert child(code, tmp_path) == f"mamba3_bench.{folder}"


@pytest.mark.parametrize("name", [*FOLDERS, "tests", "src"])
def test_nothing_generic_is_installed(name: str, tmp_path: Path) -> None:
    """The bare folder names do not resolve to our sources outside the root."""
    code = f"""
import importlib.util
spec = importlib.util.find_spec({name!r})
places = [] if spec is None else [spec.origin or "", *(spec.submodule_search_locations or ())]
print(any(place.startswith({str(ROOT)!r}) for place in places))
"""
    assert child(code, tmp_path) == "False"


def test_dsl_folders_do_not_shadow_their_dsl(tmp_path: Path) -> None:
    """kernels/torch does `import torch`, and that is PyTorch."""
    code = "from mamba3_bench.kernels.torch import reference; print(reference.torch.__version__)"
    assert child(code, tmp_path)[0].isdigit()


def test_the_installed_copy_is_the_one_under_test() -> None:
    """Tests import what was installed: the wheel, or through the links of this checkout."""
    here = Path(mamba3_bench.__file__)
    if installed():
        assert here.samefile(
            str(distribution("mamba3-bench").locate_file("mamba3_bench/__init__.py"))
        )
    else:
        assert here.samefile(ROOT / "src" / "mamba3_bench" / "__init__.py")


def test_wheel_holds_every_source() -> None:
    """Linked folders are easily lost on the way tree, source distribution, wheel: count them."""
    if not installed():
        pytest.skip("an editable installation copies nothing")
    data = ("reports/templates/*", "kernels/tuned/*.json")
    sources = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    sources += [path for pattern in data for path in ROOT.glob(pattern)]
    expected = {f"mamba3_bench/{path.relative_to(ROOT)}" for path in sources}
    own = (ROOT / "src" / "mamba3_bench").glob("*.*")  # __init__.py, py.typed, not the links
    assert set(installed()) == expected | {f"mamba3_bench/{path.name}" for path in own}


def test_imports_point_one_way() -> None:
    """reports -> bench -> kernels -> reference, never back."""
    order = ("reference", "kernels", "bench", "reports")
    for rank, folder in enumerate(order):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            for above in order[rank + 1 :]:
                back = rf"^\s*(from|import)\s+(mamba3_bench\.|\.+){above}\b"
                found = re.search(back, text, re.MULTILINE)
                assert not found, f"{path.relative_to(ROOT)}: {found and found[0]}"


def test_no_bare_import_of_a_folder() -> None:
    """`import kernels` finds our folder at the root and another project's package elsewhere."""
    bare = re.compile(rf"^\s*(?:import|from) (?:{'|'.join(FOLDERS)})\b", re.MULTILINE)
    for folder in (*FOLDERS, "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            found = bare.search(path.read_text())
            assert not found, f"{path.relative_to(ROOT)}: {found and found[0].strip()}"
