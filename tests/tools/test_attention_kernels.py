"""The benchmark of attention kernels: on a CPU with the smallest model, on a GPU with ViT-H/14."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench" / "attention_kernels.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def measured(out: Path, *arguments: object) -> list[dict[str, Any]]:
    done = run(*arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.with_suffix(".json").read_text())


def test_kernels_are_measured_at_the_shapes_of_a_model(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    small = ("--models", "clip_micro_p8", "--mask-ratios", 0.5, "--pairs", 2, "--rounds", 3)
    results = measured(out, *small, "--device", "cpu")

    kernels = ["chosen", "flash_attention", "math"]
    assert [result["kernel"] for result in results] == 2 * kernels  # image and text
    # 32 pixels in patches of 8: 16 patches, of which 8 are visible, and the class token.
    assert results[0]["shape"] == "clip_micro_p8 image, 50% hidden"
    assert results[0]["tokens"] == 8 + 1
    for result in results:
        low, median, high = result["seconds"]
        assert 0 < low <= median <= high
        assert result["tflops"] > 0

    rows = [line for line in out.read_text().splitlines() if line.startswith("| clip_micro_p8 ")]
    assert [row.split(" | ")[2] for row in rows] == 2 * kernels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "vit_h15"], "there is no model 'vit_h15'; did you mean"),
        (["--mask-ratios", "1.5"], "1.5"),
    ],
)
def test_bad_input_gets_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run("--device", "cpu", *arguments, "--out", tmp_path / "page.md")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_flash_attention_and_another_kernel_run_on_gpu(tmp_path: Path) -> None:
    results = measured(tmp_path / "page.md", "--models", "vit_h14", "--mask-ratios", 0.5, "--rounds", 5)
    ran = {result["kernel"] for result in results if result["seconds"]}
    assert {"chosen", "flash_attention"} < ran
