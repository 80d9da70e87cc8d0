"""The benchmarks are run by hand and rarely: that they start is tested."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts_and_explains_itself(script, tmp_path):
    """One imported a function that had been removed, and nobody noticed."""
    environment = os.environ | {"CLAPCUR_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=100, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
