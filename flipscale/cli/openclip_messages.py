"""What `flipscale export` and `flipscale import` say about an OpenCLIP directory."""

from __future__ import annotations

from pathlib import Path

from flipscale.interop.verification import VerifyReport


def verification(report: VerifyReport) -> str:
    """Return how closely stock open_clip agrees."""
    return (
        f"stock open_clip {report.open_clip_version}: largest difference {report.image_difference:.1e} "
        f"(image) and {report.text_difference:.1e} (text), token ids of {report.captions} captions equal"
    )


def how_to_load(directory: Path) -> str:
    """Return the line of Python that loads an OpenCLIP directory."""
    return f'load it with open_clip.create_model_and_transforms("local-dir:{directory.resolve()}")'
