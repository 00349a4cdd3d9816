"""Weights that a run starts from: an exported model, and the job settings that name it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flipscale.data.text.tokenizer import load_tokenizer
from flipscale.interop.openclip_export import export_openclip
from flipscale.models.flip import build_model
from flipscale.models.presets import preset

STILL = 1e-30  # a learning rate that changes no bit of an fp32 weight
ONE_STEP = [{"name": "tuned", "samples": 16, "mask_ratio": 0.0, "batch_size": 16, "base_lr": STILL}]


def export_some(
    data_set: Path, out: Path, seed: int = 5, name: str = "vit_micro_p8", context_length: int = 16
) -> Path:
    """Write an OpenCLIP directory of a model that differs from every initial model of these tests."""
    tokenizer = load_tokenizer("wordpiece", str(data_set / "vocab.txt"), context_length)
    spec = preset(name, vocab_size=tokenizer.vocab_size, context_length=context_length)
    model = build_model(spec, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    export_openclip(model, spec, out, tokenizer=tokenizer)
    return out


def started_from(weights: Path, **model: Any) -> dict[str, Any]:
    """Return the blocks of a job that starts from these weights and trains one step that changes nothing."""
    return {"model": {"preset": "vit_micro_p8", "weights": str(weights), **model}, "phases": ONE_STEP}
