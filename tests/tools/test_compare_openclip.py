"""The script that puts a run beside the nearest published model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from run_in_files import RunInFiles

from flipscale.models.presets import preset
from flipscale.planning.flops import parameter_count

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tools/compare_openclip.py"

sys.path.insert(0, str(SCRIPT.parent))
from compare_openclip import nearest  # noqa: E402


def test_size_goes_before_samples() -> None:
    for shape, samples, expected in (
        ("vit_b16", 12_800_000_000, {"ViT-B-16", "ViT-B-32"}),
        ("vit_l14", 12_800_000_000, {"ViT-L-14"}),
        ("vit_h14", 25_600_000_000, {"ViT-H-14"}),
    ):
        found = nearest(parameter_count(preset(shape)).total, samples)[0]
        assert found.model in expected
        assert 0.5 < found.samples_seen / samples < 2


def test_without_weights_it_names_those_to_fetch(tmp_path: Path) -> None:
    run = RunInFiles.new(tmp_path / "run").path
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "none"), "HOME": str(tmp_path)}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(run)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**environment, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: no published weights are on this machine; the nearest are")
    assert "Traceback" not in done.stderr
