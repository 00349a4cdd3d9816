"""The script that compares a run with the nearest published model."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support.run_in_files import RunInFiles

from flipscale.errors import UserError
from flipscale.models.presets import preset
from flipscale.planning.flops import parameter_count

SCRIPT = Path(__file__).resolve().parents[2] / "tools/compare_openclip.py"


@pytest.fixture(scope="module")
def script() -> Any:
    described = importlib.util.spec_from_file_location("compare_openclip", SCRIPT)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("shape", "samples", "expected"),
    [
        ("vit_b16", 12_800_000_000, {"ViT-B-16", "ViT-B-16-quickgelu", "ViT-B-32", "ViT-B-32-quickgelu"}),
        ("vit_l14", 12_800_000_000, {"ViT-L-14-quickgelu"}),
        ("vit_h14", 25_600_000_000, {"ViT-H-14"}),
    ],
)
def test_size_counts_more_than_samples(script: Any, shape: str, samples: int, expected: set[str]) -> None:
    found = script.nearest(parameter_count(preset(shape)).total, samples)[0]
    assert found.model in expected
    assert 0.5 < found.samples_seen / samples < 2


def test_run_is_compared_with_the_nearest_weights_on_this_machine(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunInFiles.new(tmp_path / "run").path
    given = argparse.Namespace(
        run=run, weights=None, list=False, out=tmp_path / "out", sets=None, root=None, batch_size=8
    )
    monkeypatch.setattr(script, "on_this_machine", lambda model: False)
    with pytest.raises(UserError, match="no published weights are on this machine; the nearest are"):
        script.compare_nearest(given)

    asked: list[list[str]] = []
    monkeypatch.setattr(script, "on_this_machine", lambda model: model.model == "ViT-L-14")
    monkeypatch.setattr(script, "compare", lambda options: asked.append(options.models))
    script.compare_nearest(given)
    assert asked[0][0] == str(run)
    assert asked[0][1].startswith("ViT-L-14:")

    given.weights = tmp_path / "weights.pt"
    script.compare_nearest(given)
    assert asked[1][1].endswith(f":{tmp_path / 'weights.pt'}")
