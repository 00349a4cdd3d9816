"""`flipscale probe`."""

from __future__ import annotations

from flipscale.cli.classifier_options import ProbeOptions


def probe(options: ProbeOptions) -> None:
    """Train a linear classifier on frozen image features, and score it."""
    from flipscale.cli.classifier import run_probe

    run_probe(options)
