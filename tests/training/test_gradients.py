"""Accumulation with cached features gives the gradients of the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flipscale.config import Job
from flipscale.distributed.world import World
from flipscale.losses.contrastive import contrastive_loss
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import visible_patches, visible_tokens
from flipscale.models.presets import preset
from flipscale.sharding.ddp import DdpModel
from flipscale.training.gradients import accumulate_gradients

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


DECODER = {"weight": 0.5, "width": 32, "layers": 2, "heads": 2}


def job(micro_batch: int | None, loss: str, *, reconstruct: bool = False) -> Job:
    return Job.model_validate(
        {
            "name": "x",
            "model": "vit_micro_p8",
            "data": {"train": "x.tar", "tokenizer": {"vocab": "x"}},
            "phases": [{"name": "a", "samples": 64, "mask_ratio": 0.5, "batch_size": 64, "base_lr": 1}],
            "loss": {"kind": loss, "reconstruction": DECODER if reconstruct else None},
            "sharding": {"micro_batch": micro_batch},
        }
    )


def make_pairs(mask_ratio: float, text_mask_ratio: float = 0.0) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    positions = torch.arange(32)
    images = torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens = torch.randint(90, (32, 12), generator=generator)
    keep = visible_patches(positions, 16, mask_ratio, seed=1)
    return Inputs(
        images, tokens, keep, visible_tokens(tokens, positions, text_mask_ratio, 1, "random", "first", 0)
    )


def gradients(
    micro_batch: int | None, mask_ratio: float, loss: str = "contrastive"
) -> tuple[float, dict[str, torch.Tensor]]:
    spec = preset("vit_micro_p8", vocab_size=90, context_length=12, logit_bias=loss == "sigmoid")
    settings = job(micro_batch, loss)
    model = build_model(spec, seed=3)
    sharded = DdpModel(model, settings.sharding, settings.optimizer, ALONE)
    scalars = accumulate_gradients(sharded, make_pairs(mask_ratio), settings.loss, micro_batch)
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


def with_ablations(
    micro_batch: int | None, mask_ratio: float
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return scalars and gradients with half of each caption masked, and with reconstruction."""
    settings = job(micro_batch, "contrastive", reconstruct=True)
    spec = preset("vit_micro_p8", vocab_size=90, context_length=12, decoder=settings.loss.decoder)
    model = build_model(spec, seed=3)
    sharded = DdpModel(model, settings.sharding, settings.optimizer, ALONE)
    scalars = accumulate_gradients(sharded, make_pairs(mask_ratio, 0.5), settings.loss, micro_batch)
    return scalars, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
@pytest.mark.parametrize("micro_batch", [5, 16])
def test_micro_batches_give_the_same_with_masked_texts_and_reconstruction(
    micro_batch: int, mask_ratio: float
) -> None:
    whole_scalars, whole = with_ablations(None, mask_ratio)
    scalars, parts = with_ablations(micro_batch, mask_ratio)
    assert scalars.keys() == whole_scalars.keys()
    for name, value in whole_scalars.items():
        assert float(scalars[name]) == pytest.approx(float(value), rel=1e-6)
    assert parts.keys() == whole.keys()
    everything = torch.cat([gradient.flatten() for gradient in whole.values()])
    difference = torch.cat([(parts[name] - gradient).flatten() for name, gradient in whole.items()])
    assert difference.norm() / everything.norm() < 1e-5
    decoders = [name for name in whole if name.startswith("reconstruction.")]
    assert decoders
    assert all(bool(parts[name].any()) == (mask_ratio > 0) for name in decoders)


def test_the_losses_are_added_with_the_weight() -> None:
    scalars, found = with_ablations(None, 0.75)
    model = build_model(preset("vit_micro_p8", vocab_size=90, context_length=12, decoder=(32, 2, 2)), seed=3)
    features = model(make_pairs(0.75, 0.5), reconstruct=True)
    contrastive = contrastive_loss(features.images, features.texts, features.scale)
    (contrastive + 0.5 * features.reconstruction).backward()
    assert float(scalars["reconstruction"]) == float(features.reconstruction.detach())
    assert float(scalars["loss"]) == float((contrastive + 0.5 * features.reconstruction).detach())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(found[name], parameter.grad), name


def test_no_reconstruction_is_reported_if_nothing_is_hidden() -> None:
    scalars, _ = with_ablations(None, 0.0)
    assert "reconstruction" not in scalars
