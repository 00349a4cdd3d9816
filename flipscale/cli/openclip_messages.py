"""What `flipscale export` and `flipscale import` say about an OpenCLIP directory."""

from __future__ import annotations

from pathlib import Path

from flipscale.interop.verification import VerifyReport
from flipscale.third_party import torchvision_remedy


def verification(report: VerifyReport) -> str:
    """Return how closely stock open_clip agrees."""
    return (
        f"stock open_clip {report.open_clip_version}: largest difference {report.image_difference:.1e} "
        f"(image) and {report.text_difference:.1e} (text), token ids of {report.captions} captions equal"
    )


def how_to_load(directory: Path, report: VerifyReport) -> str:
    """Return the line of Python that loads an OpenCLIP directory, and what it needs in this environment."""
    line = f'load it with open_clip.create_model_and_transforms("local-dir:{directory.resolve()}")'
    if not report.needed_help:
        return line
    return (
        f"{line}\nwarning: `import open_clip` fails in this environment: torchvision does not fit torch; "
        f"install the one that does, from torch's index (`{torchvision_remedy()}`), or write `from "
        "flipscale.third_party import import_open_clip; open_clip = import_open_clip()`"
    )
