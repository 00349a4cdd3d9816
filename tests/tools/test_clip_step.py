"""The tool that compares a step of a CLIP model with stock OpenCLIP's, on a model of two layers."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/bench/clip_step.py"


@pytest.mark.slow
def test_page_has_the_ratios_of_each_mask_and_the_raw_seconds(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    options = ["--model", "clip_micro_p8", "--batch", "4", "--rounds", "2", "--out", str(page)]
    subprocess.run([sys.executable, str(TOOL), *options], check=True, stderr=subprocess.DEVNULL)
    rows = re.findall(r"^\| (\d+)% \|(( [\d.]+ \([\d.]+ to [\d.]+\) \|){3})$", page.read_text(), re.MULTILINE)
    assert [row[0] for row in rows] == ["0", "50", "75"]

    raw = json.loads(page.with_suffix(".json").read_text())
    assert [len(seconds) for of in raw.values() for seconds in of.values()] == [2] * 9


def test_contestants_begin_with_the_same_loss() -> None:
    tool = runpy.run_path(str(TOOL))
    spec = tool["preset"]("clip_micro_p8")
    batch = tool["Batch"].draw(spec, 4, 0)
    whole = tool["our_step"](spec, 0.0, "fp32", packed=False)(batch, 0)
    packed = tool["our_step"](spec, 0.0, "fp32", packed=True)(batch, 0)
    assert packed == pytest.approx(whole, rel=1e-6)
    assert tool["stock_step"](spec, 0.0, "fp32")(batch, 0) == pytest.approx(whole, rel=1e-4)
