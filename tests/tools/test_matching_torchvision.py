"""A torchvision that was built for another torch: what to install, and that an export's proof says so."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from support.stock_comparison import FLIP_SPEC, perturbed

from flipscale.cli.openclip_messages import how_to_load
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.verification import verify_export
from flipscale.third_party import torchvision_remedy


@pytest.mark.parametrize(
    ("torch_version", "torchvision_version", "command"),
    [
        ("2.13.0+cpu", "0.28.0", "torchvision==0.28.0+cpu"),
        ("2.8.0+cu128", "0.23.0+cu126", "torchvision==0.23.0+cu128"),
        ("2.8.0", "0.23.0+cpu", "torchvision==0.23.0"),
    ],
)
def test_remedy_takes_the_build_of_torch(
    torch_version: str, torchvision_version: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"torch": torch_version, "torchvision": torchvision_version}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    assert torchvision_remedy() == f"pip install --force-reinstall --no-deps {command}"


@pytest.mark.slow  # imports torch in two processes
def test_proof_of_an_export_says_whether_a_plain_import_works(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    report = verify_export(tmp_path, model)

    plain = subprocess.run([sys.executable, "-c", "import open_clip"], capture_output=True, check=False)
    assert report.needed_help == (plain.returncode != 0)
    assert (torchvision_remedy() in how_to_load(tmp_path, report)) == report.needed_help
