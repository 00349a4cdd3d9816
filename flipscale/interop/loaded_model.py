"""A model in memory with its tokenizer and, if it comes from a run, its origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flipscale.config import Job
from flipscale.data.text.tokenizer import Tokenizer, load_tokenizer
from flipscale.errors import UserError
from flipscale.interop.openclip_state import StateDict
from flipscale.models.flip import FLIP, build_model
from flipscale.models.presets import ModelSpec
from flipscale.order_digest import OrderDigest


@dataclass(frozen=True)
class LoadedModel:
    """An fp32 model with its tokenizer. What only a run has is None for an OpenCLIP directory."""

    model: FLIP
    """The model, on the device of its process."""
    tokenizer: Tokenizer
    """The tokenizer that the model was trained with."""
    job: Job | None = None
    """The job of the run."""
    samples_seen: int | None = None
    """Samples seen at the checkpoint."""
    digest: OrderDigest | None = None
    """The order digest of these samples."""
    data: dict[str, Any] | None = None
    """Fingerprint and number of samples of the training set."""


def build_with_tokenizer(
    spec: ModelSpec, state: StateDict, directory: Path | None, device: torch.device | str = "cpu"
) -> LoadedModel:
    """Build a model of OpenCLIP, and load its tokenizer.

    Args:
        spec: The model's shape.
        state: Its weights, under flipscale's names.
        directory: The OpenCLIP directory with the files of the tokenizer, if there is one.
        device: The device of the model.

    Raises:
        UserError: If the tokenizer is missing, damaged, or has more ids than the model.
    """
    model = build_model(spec, device="meta").to_empty(device=device)
    model.load_state_dict(state)

    kind = "wordpiece" if spec.text.pool == "first" else "clip_bpe"
    vocab = str(directory) if kind == "wordpiece" and directory is not None else None
    tokenizer = load_tokenizer(kind, vocab, spec.text.context_length)
    if tokenizer.vocab_size > spec.text.vocab_size:
        raise UserError(
            f"the tokenizer of {spec.name} gives {tokenizer.vocab_size} ids, but the model takes "
            f"{spec.text.vocab_size}; put the tokenizer that it was trained with into its directory"
        )
    return LoadedModel(model, tokenizer)
