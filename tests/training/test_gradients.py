"""Cached-feature accumulation gives the whole batch's gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flipscale.config import Job
from flipscale.models.flip import build_model
from flipscale.models.masking import visible_patches
from flipscale.models.presets import preset
from flipscale.sharding.ddp import DataParallel
from flipscale.training.gradients import Pairs, accumulate_gradients
from flipscale.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def job(micro_batch: int | None) -> Job:
    return Job.model_validate(
        {
            "name": "x",
            "model": "vit_micro_p8",
            "data": {"train": "x.tar", "tokenizer": {"vocab": "x"}},
            "phases": [{"name": "a", "samples": 64, "mask_ratio": 0.5, "batch_size": 64, "base_lr": 1}],
            "sharding": {"micro_batch": micro_batch},
        }
    )


def gradients(micro_batch: int | None, mask_ratio: float) -> tuple[float, dict[str, torch.Tensor]]:
    model = build_model(preset("vit_micro_p8", vocab_size=90, context_length=12), seed=3)
    generator = torch.Generator().manual_seed(0)
    pairs = Pairs(
        torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(90, (32, 12), generator=generator),
        visible_patches(torch.arange(32), 16, mask_ratio, seed=1),
    )
    sharded = DataParallel(model, job(micro_batch), ALONE)
    loss, _ = accumulate_gradients(sharded, pairs, job(micro_batch))
    return float(loss), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
@pytest.mark.parametrize("micro_batch", [4, 5, 16])  # 8, 7 (the last one smaller) and 2 micro-batches
def test_micro_batches_give_the_whole_batchs_gradients(micro_batch: int, mask_ratio: float) -> None:
    whole_loss, whole = gradients(None, mask_ratio)
    loss, parts = gradients(micro_batch, mask_ratio)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    assert parts.keys() == whole.keys()
    everything = torch.cat([gradient.flatten() for gradient in whole.values()])
    difference = torch.cat([(parts[name] - gradient).flatten() for name, gradient in whole.items()])
    assert difference.norm() / everything.norm() < 1e-5


def test_a_micro_batch_above_the_batch_is_the_batch(tmp_path: Path) -> None:
    assert gradients(1000, 0.5)[0] == gradients(None, 0.5)[0]
