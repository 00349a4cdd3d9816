"""Steps on a fake GPU: a program that runs many of them, and the function that starts it.

The fake GPU must be loaded before torch, so that steps are run by a program of their own. One program runs
many steps, since it imports torch once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flipscale.rehearsal.accelerator import build_accelerator, load_accelerator
from flipscale.rehearsal.child import rehearse_phase

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SimulatedStep:
    """One step of a small model, as one rank of a job."""

    sharding: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    model: str = "vit_micro_p8"
    world: int = 8
    rank: int = 0
    pairs: int = 16
    mask_ratio: float = 0.5
    text_mask_ratio: float = 0.0

    @property
    def job(self) -> dict[str, Any]:
        """The job of the step."""
        phase = {
            "name": "all",
            "samples": self.world * self.pairs,
            "mask_ratio": self.mask_ratio,
            "text_mask_ratio": self.text_mask_ratio,
            "batch_size": self.world * self.pairs,
            "base_lr": 1e-3,
        }
        kind = "clip_bpe" if "clip" in self.model else "wordpiece"
        return {
            "name": "simulated",
            "model": self.model,
            "data": {
                "train": "none.tar",
                "tokenizer": {"kind": kind, "vocab": "none.txt"},
                "lanes": self.world,
            },
            "phases": [phase],
            "sharding": {"precision": "bf16", **self.sharding},
            "loss": self.loss,
            "optimizer": self.optimizer,
        }


def run_simulated(steps: Sequence[SimulatedStep]) -> list[dict[str, Any]]:
    """Run steps on fake GPUs in one process.

    Returns:
        For each step what `rehearse_phase` returns.
    """
    questions = [_request(step) for step in steps]
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        done = subprocess.run(
            [sys.executable, __file__, str(answer)],
            input=json.dumps(questions),
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(answer.read_text())


def main() -> None:
    """Answer the questions on stdin."""
    questions = json.loads(sys.stdin.read())
    with tempfile.TemporaryDirectory() as directory:
        load_accelerator(build_accelerator(Path(directory)))
    answers = [rehearse_phase(question) for question in questions]
    Path(sys.argv[1]).write_text(json.dumps(answers))


def _request(step: SimulatedStep) -> dict[str, Any]:
    return {
        "job": json.dumps(step.job),
        "phase": 0,
        "rank": step.rank,
        "gpus": step.world,
        "ranks_per_node": 8,
        "library": "loaded",
        "time": {"peak_flops": 989e12, "exact_flops": 67e12, "bandwidth": 3.35e12},
    }


if __name__ == "__main__":
    main()
