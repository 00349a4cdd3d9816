"""Models of OpenCLIP read into flipscale: positions, patch bias, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.stock_comparison import (
    FLIP_SPEC,
    perturbed,
    stock_differences,
)

from flipscale.errors import UserError
from flipscale.interop.openclip_config import open_clip_model_cfg
from flipscale.interop.openclip_directory import CONFIG
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.openclip_import import import_openclip
from flipscale.interop.openclip_state import open_clip_state
from flipscale.interop.weights import WEIGHTS
from flipscale.models.flip import build_model
from flipscale.third_party import import_open_clip

open_clip = import_open_clip()


TOLERANCE = 1e-5


def test_imported_model_computes_what_open_clip_computes(tmp_path: Path) -> None:
    """The other direction: weights that OpenCLIP made, with its own defaults."""
    torch.manual_seed(0)
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2},
    }
    stock = open_clip.CLIP(**config).eval()
    save_file(stock.state_dict(), tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"model_cfg": config}))
    spec, state = import_openclip(tmp_path)
    model = build_model(spec)
    model.load_state_dict(state)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()

    assert max(stock_differences(stock, model)) <= TOLERANCE


def edit_config(directory: Path, section: str, key: str, value: Any) -> None:
    config = json.loads((directory / CONFIG).read_text())
    config["model_cfg"][section][key] = value
    (directory / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("vision_cfg", "timm_model_name", "resnet50", "timm_model_name is a feature of OpenCLIP"),
        ("vision_cfg", "layers", [3, 4, 6, 3], "layers is .* whole number"),
        ("vision_cfg", "pool_type", "none", "pool_type 'none' cannot be imported"),
        ("vision_cfg", "final_ln_after_pool", True, "final_ln_after_pool True cannot be imported"),
        ("text_cfg", "layers", 3, "resblocks.2.* is missing in the file"),
        ("text_cfg", "context_length", 16, "positional_embedding' is .* in the file"),
    ],
)
def test_unsupported_feature_is_named(
    section: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path)
    edit_config(tmp_path, section, key, value)
    with pytest.raises(UserError, match=message):
        import_openclip(tmp_path)


def test_damaged_or_missing_weights_are_named(tmp_path: Path) -> None:
    export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path)
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="is damaged"):
        import_openclip(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=f"holds no {WEIGHTS}"):
        import_openclip(tmp_path)


def test_trained_positions_are_imported_as_learned(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["visual.positional_embedding"] += 0.01 * torch.randn_like(tensors["visual.positional_embedding"])
    save_file(tensors, tmp_path / WEIGHTS)
    spec, state = import_openclip(tmp_path)

    assert (spec.vision.positions, spec.vision.patch_bias) == ("learned", False)
    model = build_model(spec)
    model.load_state_dict(state)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()

    assert max(stock_differences(stock, model)) <= TOLERANCE


@pytest.mark.parametrize("origin", ["saved again", "averaged", "made by open_clip"])
def test_patch_bias_is_recovered_from_a_flip_that_others_saved(origin: str, tmp_path: Path) -> None:
    """Without flipscale's header, the bias is only in the positions."""
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    bias = model.state_dict()["visual.conv1.bias"]

    if origin == "averaged":
        other = open_clip_state(build_model(FLIP_SPEC, seed=7).state_dict(), FLIP_SPEC)
        tensors = {name: (tensors[name] + other[name]) / 2 for name in tensors}
        bias = bias / 2
    elif origin == "made by open_clip":
        tensors = open_clip.CLIP(**open_clip_model_cfg(FLIP_SPEC)).state_dict()
        bias = torch.zeros_like(bias)

    save_file(tensors, tmp_path / WEIGHTS)
    spec, state = import_openclip(tmp_path)
    assert spec == FLIP_SPEC
    torch.testing.assert_close(state["visual.conv1.bias"], bias, rtol=0.0, atol=1e-6 if bias.any() else 0.0)
    again = build_model(spec)
    again.load_state_dict(state)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert max(stock_differences(stock, again)) <= TOLERANCE


def test_positions_other_than_table_plus_bias_are_learned(tmp_path: Path) -> None:
    export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path)
    whole = load_file(tmp_path / WEIGHTS)

    for row in (0, 1, 5):
        tensors = {name: tensor.clone() for name, tensor in whole.items()}
        tensors["visual.positional_embedding"][row, 3] += 1e-4
        save_file(tensors, tmp_path / WEIGHTS)
        spec, state = import_openclip(tmp_path)
        assert (spec.vision.positions, spec.vision.patch_bias) == ("learned", False)
        name = "visual.positional_embedding"
        assert torch.equal(state[name], tensors[name])
    del tensors[name]
    save_file(tensors, tmp_path / WEIGHTS)

    with pytest.raises(UserError, match=r"'visual\.positional_embedding' is missing in the file"):
        import_openclip(tmp_path)
