"""Plugins: each loads once under a name of its own, and says in one line why it does not."""

import sys

import pytest

from mamba3_bench.bench import plugins
from mamba3_bench.bench.cli import main
from mamba3_bench.bench.session import absolute
from mamba3_bench.kernels import registry

MINE = """
from mamba3_bench.kernels import registry

own = registry.get("prefill", "torch")
registry.implements("prefill", {name!r}, supports=own.supports, configs=own.configs)(own.run)
"""


@pytest.fixture(autouse=True)
def unloaded():
    """Each test has a `mine` of its own."""
    yield
    for name in [name for name in sys.modules if name.endswith("mine") or "plugin_mine" in name]:
        del sys.modules[name]


def write(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", "SyntaxError: invalid syntax (mine.py, line 1)"),
        ("raise RuntimeError('no\\nluck')\n", "RuntimeError: no luck"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        (
            MINE.format(name="torch"),
            "BackendTaken: prefill: backend 'torch' is that of mamba3_bench.kernels.torch.prefill; "
            "register yours by another name",
        ),
    ],
)
def test_a_broken_plugin(tmp_path, capsys, text, says):
    """Exit code 1 and one line with its name, no traceback; mended, it loads."""
    name = write(tmp_path / "mine.py", text)
    assert main(["check", "--plugin", name]) == 1
    assert capsys.readouterr().out == f"error: plugin {name}: {says}\n"
    write(tmp_path / "mine.py", MINE.format(name="mended"))
    plugins.load([name])
    assert "mended" in registry.backends("prefill")


def test_two_files_of_one_name(tmp_path):
    """Both load, and each once, however its path is written."""
    names = [write(tmp_path / at / "mine.py", MINE.format(name=at)) for at in ("a", "b")]
    plugins.load([*names, str(tmp_path / "b" / ".." / "a" / "mine.py")])
    assert {"a", "b"} <= set(registry.backends("prefill"))
    assert len([name for name in sys.modules if name.startswith("mamba3_bench_plugin_mine")]) == 2


def test_a_module_of_the_current_folder(tmp_path, monkeypatch, capsys):
    """Workers do not search there, and get its file; the row is right."""
    file = write(tmp_path / "mine.py", MINE.format(name="mine"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert absolute(["mine", "json", "no_such_module"]) == (file, "json", "no_such_module")
    line = "check --plugin mine --backend mine --device cpu --length 5 --heads 2 --head-size 4"
    assert main([*line.split(), "--state", "8"]) == 0
    assert "1 ok" in capsys.readouterr().out


def test_a_module_found_elsewhere_too(tmp_path, monkeypatch):
    """Its name is enough for a worker; another module of that name is not the one meant."""
    write(tmp_path / "mine.py", "")
    write(tmp_path / "other" / "mine.py", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert absolute(["mine"]) == ("mine",)  # started in another folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path), *sys.path])
    assert absolute(["mine"]) == ("mine",)
    monkeypatch.setattr(sys, "path", [str(tmp_path), str(tmp_path / "other"), *sys.path[3:]])
    assert absolute(["mine"]) == (str(tmp_path / "mine.py"),)


def test_a_plugin_without_a_space(tmp_path, capsys):
    """Whose configs raise is left out of a tuning, by name, and not in a traceback."""
    broken = MINE.replace("configs=own.configs", "configs=lambda problem, device: 1 / 0")
    name = write(tmp_path / "mine.py", broken.format(name="broken"))
    assert main(["tune", "--plugin", name, "--backend", "broken", "--device", "cpu"]) == 3
    out = capsys.readouterr().out
    assert "broken prefill: its space: ZeroDivisionError: division by zero" in " ".join(out.split())
