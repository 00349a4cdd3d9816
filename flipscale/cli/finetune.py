"""`flipscale finetune`."""

from __future__ import annotations

from flipscale.cli.classifier_options import FinetuneOptions


def finetune(options: FinetuneOptions) -> None:
    """Train the image tower and a linear classifier on it together, and score them."""
    from flipscale.cli.classifier import run_finetune

    run_finetune(options)
