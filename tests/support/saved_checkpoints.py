"""Small checkpoints, as the real writer saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flipscale.distributed.world import World
from flipscale.order_digest import OrderDigest
from flipscale.progress import Progress
from flipscale.runs import checkpoint
from flipscale.runs.checkpoint_writer import CheckpointWriter
from flipscale.runs.manifest import directory_name

SINGLE = World(0, 1, 0, 1, torch.device("cpu"))


def state_at(samples: int) -> dict[str, Tensor]:
    torch.manual_seed(samples)
    return {"model.a": torch.randn(300, 70), "exp_avg.a": torch.randn(300, 70), "model.b": torch.randn(1)}


def progress_at(samples: int) -> Progress:
    return Progress(samples_seen=samples, digest=OrderDigest(samples * 3), optimizer_steps=samples // 8)


def save(
    root: Path,
    *samples: int,
    permanent: bool = False,
    keep_last: int = 9,
    name: str = "x",
    job: Mapping[str, Any] | None = None,
) -> Path:
    """Save checkpoints as a start does that resumes from the newest whole one; return the last of them."""
    newest = checkpoint.find(root)
    resumed = newest.progress if newest else Progress()
    writer = CheckpointWriter(root, dict(job or {"name": name}), keep_last, resumed, SINGLE)
    for count in samples:
        writer.save(state_at(count).items(), progress_at(count), permanent=permanent)
    writer.close()
    assert writer.committed == progress_at(samples[-1])
    return root / directory_name(samples[-1])


def load(newest: checkpoint.Checkpoint | None) -> dict[str, Tensor]:
    assert newest is not None
    state = {name: torch.zeros_like(tensor) for name, tensor in state_at(0).items()}
    newest.load(state)
    return state


def is_exact(newest: checkpoint.Checkpoint) -> bool:
    """Return whether a checkpoint has the progress and the tensors that its number of samples prescribes."""
    samples = newest.progress.samples_seen
    tensors = load(newest)
    same = all(torch.equal(tensors[name], tensor) for name, tensor in state_at(samples).items())
    return same and newest.progress == progress_at(samples) and newest.job == {"name": "x"}
