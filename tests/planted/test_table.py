"""The table of planted faults: a public tuner does take them, and the table says so."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("table.py")


def test_triton_autotune_takes_each_fault(tmp_path):
    """Through the interpreter, by Triton's own tuner: all that end a run are left to a GPU."""
    pytest.importorskip("triton")
    line = [sys.executable, "-P", str(TABLE), "--out", str(tmp_path), "--tuners", "triton"]
    subprocess.run(line, check=True, capture_output=True, timeout=120)
    results = json.loads((tmp_path / "table.json").read_text())
    assert len(results) >= 6
    assert all(result["chose"] == result["fault"] and result["wrong"] for result in results)
    assert (tmp_path / "table.md").read_text().count("**wins**") == len(results)
