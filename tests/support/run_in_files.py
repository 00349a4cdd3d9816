"""A run directory written by hand, and Slurm commands that answer from a file and count their calls."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from flipscale.config import load_job
from flipscale.runs.directory import RunDirectory, prepare
from flipscale.runs.heartbeat import Heartbeat, ProcessState, write_heartbeat

DOCUMENT: dict[str, Any] = {
    "name": "first",
    "model": "vit_micro_p8",
    "data": {"train": "/data/{0..9}.tar", "tokenizer": {"vocab": "vocab.txt"}, "lanes": 8},
    "phases": [
        {"name": "masked", "samples": 800, "mask_ratio": 0.5, "batch_size": 8, "base_lr": 1e-3},
        {"name": "unmasked", "samples": 200, "mask_ratio": 0.0, "batch_size": 8, "base_lr": 1e-4},
    ],
}


@dataclass(frozen=True)
class RunInFiles:
    """A run of 800 + 200 samples; every method adds to its files what the real writers would."""

    path: Path

    @classmethod
    def new(cls, path: Path) -> RunInFiles:
        path.parent.mkdir(parents=True, exist_ok=True)
        job = path.with_suffix(".yaml")
        job.write_text(yaml.safe_dump(DOCUMENT))
        prepare(RunDirectory(path), load_job(job), 0)
        return cls(path)

    def segment(self, **fields: Any) -> RunInFiles:
        """A closed segment."""
        number = len(self._lines("ledger.jsonl"))
        return self._append("ledger.jsonl", {"segment": number, "world_size": 2, "detail": "", **fields})

    def open_segment(self, **fields: Any) -> RunInFiles:
        number = len(self._lines("ledger.jsonl"))
        record = {"segment": number, "world_size": 2, "samples_from": 0, "samples_to": 0, **fields}
        (self.path / "segment.json").write_text(json.dumps(record))
        return self

    def metrics(self, **fields: Any) -> RunInFiles:
        line = {"step": 1, "phase": "masked", "loss": 2.5, "lr": 0.1, "skipped_steps": 3, **fields}
        return self._append("metrics.jsonl", line)

    def submitted(self, job_id: str, **fields: Any) -> RunInFiles:
        line = {"time": 0.0, "cluster": "slurm", "job_id": job_id, "accounting": False, **fields}
        return self._append("submissions.jsonl", line)

    def checkpoint(self, samples: int) -> RunInFiles:
        directory = self.path / f"checkpoints/samples_{samples:012d}"
        directory.mkdir()
        (directory / "manifest.json").write_text("{}")
        return self

    def beat(
        self, rank: int, state: ProcessState, *, at: float, attempt: str = "7.0", **fields: Any
    ) -> RunInFiles:
        known: dict[str, Any] = {
            "node": f"n{rank + 1}",
            "pid": 1,
            "samples_seen": 0,
            "step_seconds": 0.5,
            **fields,
        }
        beat = Heartbeat(attempt=attempt, rank=rank, world_size=2, state=state, time=at, **known)
        write_heartbeat(self.path, beat)
        return self

    def _append(self, name: str, record: dict[str, Any]) -> RunInFiles:
        with open(self.path / name, "a") as file:
            file.write(json.dumps(record) + "\n")
        return self

    def _lines(self, name: str) -> list[str]:
        path = self.path / name
        return path.read_text().splitlines() if path.exists() else []


class FakeSlurm:
    """squeue, sacct and scancel that are shell scripts on PATH."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory = directory
        directory.mkdir()
        for name in ("squeue", "sacct", "scancel"):
            script = directory / name
            script.write_text(
                f'#!/bin/sh\necho {name} "$@" >> {directory}/calls\n'
                f"test ! -e {directory}/broken || {{ echo {name}: error: no controller >&2; exit 1; }}\n"
                f"test ! -e {directory}/{name}.answer || cat {directory}/{name}.answer\n"
            )
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")

    def answers(self, *lines: str, program: str = "squeue") -> None:
        """What squeue or sacct prints: JOBID|STATE|REASON|NODES."""
        (self._directory / f"{program}.answer").write_text("".join(line + "\n" for line in lines))

    def breaks(self) -> None:
        (self._directory / "broken").touch()

    def calls(self) -> list[str]:
        path = self._directory / "calls"
        return path.read_text().splitlines() if path.exists() else []
