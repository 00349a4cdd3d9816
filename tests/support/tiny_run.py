"""A job file in its own directory, and the real command on it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from flipscale import jsonl
from flipscale.runs import checkpoint
from flipscale.runs.metrics import TIMING_FIELDS


@dataclass(frozen=True)
class TinyRun:
    job: Path
    output: Path

    @classmethod
    def write(cls, directory: Path, name: str, data_set: Path, **changes: Any) -> TinyRun:
        """Write a job of 40 + 10 steps over 8 lanes on the shared data set.

        Args:
            directory: Place of the job file and of the run's directory.
            name: Name of both.
            data_set: The shared data set.
            changes: Top-level keys that replace those of the job; mappings are merged.
        """
        output = directory / name
        document: dict[str, Any] = {
            "name": "tiny",
            "output": str(output),
            "model": "vit_micro_p8",
            "data": {
                "train": str(data_set / "train/{00000..00002}.tar"),
                "tokenizer": {
                    "kind": "wordpiece",
                    "vocab": str(data_set / "vocab.txt"),
                    "context_length": 16,
                },
                "lanes": 8,
                "window": 16,
                "workers": 0,
            },
            "phases": [
                {
                    "name": "masked",
                    "samples": 640,
                    "mask_ratio": 0.5,
                    "batch_size": 16,
                    "base_lr": 0.02,
                    "warmup": 64,
                },
                {
                    "name": "unmasked",
                    "samples": 152,  # no multiple of 16: the last step takes 8
                    "mask_ratio": 0.0,
                    "batch_size": 16,
                    "base_lr": 0.002,
                    "fresh_optimizer": True,
                },
            ],
            "checkpoint": {"every": ["4 steps"], "keep_last": 2},
            "logging": {"every": "3 steps", "tensorboard": False},
        }
        for key, value in changes.items():
            both = isinstance(document.get(key), dict) and isinstance(value, dict)
            document[key] = {**document[key], **value} if both else value
        job = directory / f"{name}.yaml"
        job.write_text(yaml.safe_dump(document))
        return cls(job, output)

    def start(self, *overrides: str, processes: int = 1) -> subprocess.Popen[str]:
        """Start `flipscale train` in a process group of its own."""
        program = [sys.executable, "-m", "flipscale"]
        if processes > 1:
            program = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            program += [f"--nproc-per-node={processes}", "-m", "flipscale"]
        return subprocess.Popen(
            [*program, "train", str(self.job), *overrides],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def train(
        self, *overrides: str, processes: int = 1, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*overrides, processes=processes)
        out, errors = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics without the fields that depend on the clock."""
        kept = (record.items() for record in jsonl.read(self.output / "metrics.jsonl"))
        return [{key: value for key, value in items if key not in TIMING_FIELDS} for items in kept]

    def newest(self) -> Path:
        checkpoints = self.output / "checkpoints"
        return checkpoints / (checkpoints / "LATEST").read_text().strip()

    def last_manifest(self) -> dict[str, Any]:
        return json.loads((self.newest() / "manifest.json").read_text())

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the newest checkpoint, put together from the shares of its processes."""
        described = HuggingFaceStorageReader(str(self.newest())).read_metadata().state_dict_metadata
        state: dict[str, Tensor] = {}
        for name, entry in described.items():
            assert isinstance(entry, TensorStorageMetadata)
            state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
        checkpoint.read(self.newest()).load(state)
        return state

    def weights(self) -> dict[str, str]:
        """Return the SHA-256 of every tensor in the newest checkpoint: weights and moments, bit for bit.

        The digests of the files differ from run to run: safetensors orders its metadata differently in every
        process.
        """
        tensors = self.tensors().items()
        return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors}
