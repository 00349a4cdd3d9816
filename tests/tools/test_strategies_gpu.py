"""The benchmark of strategies: on a CPU with the smallest model, on a GPU with every strategy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "bench" / "strategies_gpu.py"
TINY = ("--models", "vit_micro_p8", "--batch", "4", "--steps", "2")


def measured(out: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(SCRIPT), "all", *TINY, "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(out.with_suffix(".json").read_text())


@pytest.mark.slow
@pytest.mark.long
def test_strategies_are_measured_on_cpu(tmp_path: Path) -> None:
    out = tmp_path / "page.md"
    chosen = ("fsdp", "zero2", "fairscale_fsdp")
    results = measured(out, "--device", "cpu", "--processes", "2", "--strategies", *chosen)
    sharded, zero, refused = results
    for result in (sharded, zero):
        assert result["processes"] == 2
        assert result["images_per_second"] == pytest.approx(8 / result["step_seconds"][1])
        assert result["peak_memory_gb"] > 0.05
        assert result["mfu"] is None
    assert sharded["loss"] == pytest.approx(zero["loss"], abs=0.05)  # bf16
    assert "runs on CUDA GPUs only" in refused["error"]
    rows = [line for line in out.read_text().splitlines() if line.startswith("| vit_micro_p8 ")]
    assert [row.split(" | ")[1] for row in rows] == list(chosen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_every_strategy_is_measured_on_gpu(tmp_path: Path) -> None:
    results = measured(tmp_path / "page.md", "--peak-tflops", "100")
    assert [result["strategy"] for result in results if "error" in result] == []
    assert all(result["device"] != "CPU" and 0 < result["mfu"] < 1 for result in results)
    losses = [result["loss"] for result in results]
    assert max(losses) - min(losses) < 0.05  # bf16
