"""The commands of docs/slurm.md, typed one after the other, give a preempted run that is done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flipscale.runs.ledger import read_ledger

ROOT = Path(__file__).parents[2]
SECONDS = 800  # on a busy machine


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """The environment of a fresh shell, with a directory for the cluster."""
    # Sockets have short names only, which pytest's own directories exceed.
    with tempfile.TemporaryDirectory(prefix="flipscale-docs-") as directory:
        foreign = ("SLURM", "SBATCH_", "FLIPSCALE_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
        environment = {**kept, "FLIPSCALE_SLURM_DIRECTORY": directory}
        yield environment
        subprocess.run([ROOT / "slurm/dev/cluster", "down"], env=environment, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 60)
def test_the_page_does_what_it_says(slurm_installed: None, environment: dict[str, str], tmp_path: Path):
    for name in ("jobs", "slurm"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)

    blocks = re.findall(
        r"^```bash\n(.*?)^```$", (ROOT / "docs/slurm.md").read_text(), re.MULTILINE | re.DOTALL
    )
    script = "set -eo pipefail\n" + "".join(blocks)

    # To a file: daemons that the page starts would keep a pipe open.
    with open(tmp_path / "output", "w+") as output:
        code = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        ).returncode
        output.seek(0)
        shown = output.read()

    assert code == 0, shown

    segments = read_ledger(tmp_path / "dev/run")
    assert [segment.reason for segment in segments] == ["preempted", "done"]
    first, second = segments
    assert (first.samples_from, second.samples_from) == (0, first.samples_to)
    assert 0 < first.samples_to < second.samples_to == 27_200
    assert (first.lost_samples, first.world_size, second.world_size) == (0, 2, 2)
    assert "27200 samples seen" in shown
    assert "0 repeated, 0 skipped" in shown
