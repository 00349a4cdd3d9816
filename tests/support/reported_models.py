"""Two short runs that recorded evaluations, and a model of stock open_clip, for the tests of pages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from flipscale.config import load_job
from flipscale.distributed.world import World
from flipscale.orchestration.segments.segment import Segment
from flipscale.orchestration.segments.stop_requests import StopRequests
from flipscale.runs.directory import run_directory
from flipscale.third_party import import_open_clip
from flipscale.training import trainer
from flipscale.training.check_job import check_job

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Models:
    """The models to write pages about."""

    masked: Path  # a run of two phases
    unmasked: Path  # the same without a mask
    stock: Path  # an OpenCLIP directory with random weights


def evaluation(data_set: Path) -> dict[str, Any]:
    """Return the evaluation sets of the runs' jobs."""
    shown = {"classnames": str(data_set / "classnames.txt"), "templates": str(data_set / "templates.txt")}
    return {
        "zero_shot": {"scenes": {"data": str(data_set / "test/00000.tar"), **shown}},
        "retrieval": {"captions": str(data_set / "val/00000.tar")},
    }


def trained_run(output: Path, data_set: Path, mask_ratio: float) -> Path:
    """Train a run of 96 + 32 samples that evaluates every 64 samples, and return its directory."""
    phase = {"batch_size": 16, "base_lr": 0.02}
    document = {
        "name": output.name,
        "output": str(output),
        "model": "vit_micro_p8",
        "data": {
            "train": str(data_set / "train/{00000..00002}.tar"),
            "tokenizer": {"kind": "wordpiece", "vocab": str(data_set / "vocab.txt"), "context_length": 16},
            "lanes": 8,
            "window": 16,
            "workers": 0,
        },
        "phases": [
            {"name": "first", "samples": 96, "mask_ratio": mask_ratio, **phase},
            {"name": "tuned", "samples": 32, "mask_ratio": 0.0, **phase},
        ],
        "checkpoint": {"every": ["4 steps"]},
        "logging": {"every": "1 steps", "tensorboard": False},
        "evaluation": {**evaluation(data_set), "every": "64 samples"},
    }
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(document))
    job = load_job(path)
    directory = run_directory(job)
    segment = Segment(directory, ALONE, StopRequests(directory.stop_file), hang=job.hang)
    trainer.train(job, check_job(job, 1), segment)
    return output


def stock_directory(out: Path) -> Path:
    """Write a tiny CLIP of open_clip's own, with its own pixel statistics and tokenizer."""
    out.mkdir()
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {
        "model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]},
    }
    (out / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = import_open_clip().create_model(f"local-dir:{out}", load_weights=False)
    tensors = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, out / "open_clip_model.safetensors")
    return out
