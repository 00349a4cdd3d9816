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


def job(micro_batch: int | None, loss: str) -> Job:
    return Job.model_validate(
        {
            "name": "x",
            "model": "vit_micro_p8",
            "data": {"train": "x.tar", "tokenizer": {"vocab": "x"}},
            "phases": [{"name": "a", "samples": 64, "mask_ratio": 0.5, "batch_size": 64, "base_lr": 1}],
            "loss": {"kind": loss},
            "sharding": {"micro_batch": micro_batch},
        }
    )


def gradients(
    micro_batch: int | None, mask_ratio: float, loss: str = "contrastive"
) -> tuple[float, dict[str, torch.Tensor]]:
    spec = preset("vit_micro_p8", vocab_size=90, context_length=12, logit_bias=loss == "sigmoid")
    model = build_model(spec, seed=3)
    generator = torch.Generator().manual_seed(0)
    pairs = Pairs(
        torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator),
        torch.randint(90, (32, 12), generator=generator),
        visible_patches(torch.arange(32), 16, mask_ratio, seed=1),
    )
    sharded = DataParallel(model, job(micro_batch, loss), ALONE)
    scalars = accumulate_gradients(sharded, pairs, job(micro_batch, loss))
    assert ("logit_bias" in scalars) == (loss == "sigmoid")
    return float(scalars["loss"]), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize("loss", ["contrastive", "sigmoid"])
@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
@pytest.mark.parametrize("micro_batch", [4, 5, 16])  # 8, 7 (the last one smaller) and 2 micro-batches
def test_micro_batches_give_the_whole_batchs_gradients(
    micro_batch: int, mask_ratio: float, loss: str
) -> None:
    whole_loss, whole = gradients(None, mask_ratio, loss)
    parts_loss, parts = gradients(micro_batch, mask_ratio, loss)
    assert parts_loss == pytest.approx(whole_loss, rel=1e-6)
    assert parts.keys() == whole.keys()
    for name in {"logit_scale", "logit_bias"} & whole.keys():
        assert parts[name].item() == pytest.approx(whole[name].item(), rel=1e-5)
    everything = torch.cat([gradient.flatten() for gradient in whole.values()])
    difference = torch.cat([(parts[name] - gradient).flatten() for name, gradient in whole.items()])
    assert difference.norm() / everything.norm() < 1e-5


def test_a_micro_batch_above_the_batch_is_the_batch(tmp_path: Path) -> None:
    assert gradients(1000, 0.5)[0] == gradients(None, 0.5)[0]
