"""The program that a batch script starts in the seconds that Slurm leaves to a job."""

from __future__ import annotations

import subprocess
import sys


def test_it_starts_without_torch() -> None:
    code = "import sys, flipscale.orchestration.segments.last_resort; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
