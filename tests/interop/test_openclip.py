"""Exports that stock OpenCLIP loads, and that are read back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.stock_comparison import (
    CLIP_SPEC,
    FLIP_SPEC,
    PIECES,
    SIGMOID_SPEC,
    normalized,
    perturbed,
    some_images,
    some_texts,
    stock_differences,
)

from flipscale.data.text.tokenizer import ClipTokenizer, WordPieceTokenizer
from flipscale.errors import UserError
from flipscale.interop.openclip_config import open_clip_model_cfg
from flipscale.interop.openclip_directory import CLASSIC, CONFIG
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.openclip_import import import_openclip
from flipscale.interop.verification import ODD_CAPTIONS, ExportMismatch, verify_export
from flipscale.interop.weights import WEIGHTS
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.presets import ModelSpec, preset
from flipscale.third_party import import_open_clip

open_clip = import_open_clip()


SPECS = [FLIP_SPEC, CLIP_SPEC, SIGMOID_SPEC]


TOLERANCE = 1e-5


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name + "_bias" * spec.logit_bias)
def test_stock_open_clip_computes_the_features_of_the_model(spec: ModelSpec, tmp_path: Path) -> None:
    model = perturbed(spec)
    export_openclip(model, spec, tmp_path)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert max(stock_differences(stock, model)) <= TOLERANCE
    assert (stock.logit_scale.exp() / model(Inputs())[2]).item() == pytest.approx(1.0, abs=1e-6)
    assert tuple(stock.visual.preprocess_cfg["mean"]) == spec.mean
    assert stock.visual.preprocess_cfg["resize_mode"] == "shortest"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name + "_bias" * spec.logit_bias)
def test_export_and_import_are_inverse_to_the_bit(spec: ModelSpec, tmp_path: Path) -> None:
    model = perturbed(spec)
    export_openclip(model.state_dict(), spec, tmp_path)
    again, state = import_openclip(tmp_path)
    assert again == spec
    original = model.state_dict()
    assert state.keys() == original.keys()
    assert [name for name in state if not torch.equal(state[name], original[name])] == []


def test_stock_open_clip_computes_the_logits_of_a_sigmoid_model(tmp_path: Path) -> None:
    model = perturbed(SIGMOID_SPEC)
    export_openclip(model, SIGMOID_SPEC, tmp_path)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    visual: Any = stock.visual
    images = some_images(SIGMOID_SPEC)
    texts = some_texts(SIGMOID_SPEC)
    floats = normalized(images, visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"])

    with torch.no_grad():
        theirs, _ = stock.get_logits(floats, texts)
        image_features, text_features, scale, bias, _ = model(Inputs(images, texts))
    ours = scale * image_features @ text_features.T + bias

    assert bias.item() < -9
    assert (theirs - ours).abs().max() <= TOLERANCE * float(scale)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("clip_b32", "ViT-B-32"),
        ("clip_b16", "ViT-B-16"),
        ("clip_l16", "ViT-L-16"),
        ("clip_l14", "ViT-L-14"),
        ("clip_h14", "ViT-H-14"),
    ],
)
def test_clip_presets_have_the_shapes_of_open_clips_models(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        stock = open_clip.CLIP(**open_clip.get_model_config(theirs)).state_dict()
        configured = open_clip.CLIP(**open_clip_model_cfg(preset(ours))).state_dict()
    shapes = {
        name: tensor.shape for name, tensor in build_model(preset(ours), device="meta").state_dict().items()
    }
    shapes["logit_scale"] = torch.Size([])

    assert shapes == {name: tensor.shape for name, tensor in stock.items()}
    assert shapes == {name: tensor.shape for name, tensor in configured.items()}


def test_scale_above_the_limit_is_exported_clipped(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    export_openclip(model, FLIP_SPEC, tmp_path)
    assert load_file(tmp_path / WEIGHTS)["logit_scale"].exp().item() == pytest.approx(100.0)


def test_classic_file_has_the_same_weights_and_is_not_taken_first(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    classic = torch.load(tmp_path / CLASSIC, weights_only=True)["state_dict"]
    weights = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(classic[name], weights[name]) for name in weights.keys() | classic.keys())
    assert Path(open_clip.factory._find_checkpoint_in_dir(tmp_path)).name == WEIGHTS
    stock = open_clip.CLIP(**open_clip_model_cfg(FLIP_SPEC))
    open_clip.load_checkpoint(stock, str(tmp_path / CLASSIC), strict=True)


def test_model_card_loads_the_classic_file_with_the_colours_of_the_model(tmp_path: Path) -> None:
    """The file holds no preprocessing: OpenCLIP takes OpenAI's, unless it is given the model's."""
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    card = (tmp_path / "README.md").read_text()
    (snippet,) = [block for block in card.split("```python\n")[1:] if "add_model_config" in block]
    loaded: dict[str, Any] = {"open_clip": open_clip}
    exec(snippet.split("```")[0].replace("MODEL", str(tmp_path)), loaded)

    normalize = loaded["preprocess"].transforms[-1]
    assert (tuple(normalize.mean), tuple(normalize.std)) == (FLIP_SPEC.mean, FLIP_SPEC.std)
    assert FLIP_SPEC.mean != open_clip.OPENAI_DATASET_MEAN
    assert max(stock_differences(loaded["model"].eval(), model)) <= 1e-5


def test_provenance_is_in_the_configuration_and_in_the_card(tmp_path: Path) -> None:
    provenance = {"samples seen": 12_800_000_000, "data": "laion | 400m", "digest": "0f"}
    export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path, provenance=provenance)
    config = json.loads((tmp_path / CONFIG).read_text())

    assert config["flipscale"]["provenance"] == provenance
    assert set(config) == {"model_cfg", "preprocess_cfg", "flipscale"}
    card = (tmp_path / "README.md").read_text()

    assert "| samples seen | 12800000000 |" in card
    assert "laion \\| 400m" in card
    assert "mean of the patch tokens" in card


@pytest.mark.parametrize(
    ("spec", "tokenizer", "kind"),
    [
        (FLIP_SPEC, WordPieceTokenizer(PIECES), "HFTokenizer"),
        (CLIP_SPEC, ClipTokenizer(), "SimpleTokenizer"),
    ],
    ids=["wordpiece", "bpe"],
)
def test_open_clip_loads_the_exported_tokenizer(
    spec: ModelSpec, tokenizer: Any, kind: str, tmp_path: Path
) -> None:
    export_openclip(perturbed(spec), spec, tmp_path, tokenizer=tokenizer)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert type(theirs).__name__ == kind
    assert torch.equal(theirs(list(ODD_CAPTIONS)), tokenizer(ODD_CAPTIONS))


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tokenizer gives 16 ids below 13, but the model takes 32"):
        export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path, tokenizer=WordPieceTokenizer(PIECES, 16))
    assert not any(tmp_path.iterdir())


def test_only_an_empty_directory_or_an_earlier_export_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and not an earlier flipscale export"):
        export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path)
    with pytest.raises(UserError, match="is a file"):
        export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]

    out = tmp_path / "out"
    export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, out, tokenizer=WordPieceTokenizer(PIECES))
    export_openclip(perturbed(CLIP_SPEC), CLIP_SPEC, out)
    assert import_openclip(out)[0] == CLIP_SPEC
    assert not (out / "tokenizer.json").exists()


def test_interrupted_export_does_not_load_and_can_be_repeated(tmp_path: Path) -> None:
    class Interrupted(Exception): ...

    class FailingTokenizer(WordPieceTokenizer):
        def save(self, directory: Path) -> None:
            raise Interrupted

    model = perturbed(FLIP_SPEC)
    with pytest.raises(Interrupted):
        export_openclip(model, FLIP_SPEC, tmp_path, tokenizer=FailingTokenizer(PIECES))
    assert list(tmp_path.iterdir()) == []
    export_openclip(model, FLIP_SPEC, tmp_path)

    # An earlier export is replaced file by file, since others may have put files next to them.
    (tmp_path / "notes.txt").touch()
    with pytest.raises(Interrupted):
        export_openclip(model, FLIP_SPEC, tmp_path, tokenizer=FailingTokenizer(PIECES))
    with pytest.raises(ValueError, match="missing 'model_cfg'"):
        open_clip.create_model(f"local-dir:{tmp_path}")
    with pytest.raises(UserError, match="no finished open_clip_config"):
        import_openclip(tmp_path)
    with pytest.raises(UserError, match="no finished open_clip_config"):
        verify_export(tmp_path, model)
    export_openclip(model, FLIP_SPEC, tmp_path)
    assert import_openclip(tmp_path)[0] == FLIP_SPEC
    assert (tmp_path / "notes.txt").exists()


@pytest.mark.slow
@pytest.mark.executes  # nothing is imported before open_clip
@pytest.mark.parametrize(
    ("spec", "tokenizer"),
    [
        (FLIP_SPEC, WordPieceTokenizer(PIECES)),
        (CLIP_SPEC, ClipTokenizer()),
        pytest.param(SIGMOID_SPEC, WordPieceTokenizer(PIECES), marks=pytest.mark.long),
    ],
    ids=["flip", "clip", "sigmoid"],
)
def test_verification_passes_in_a_process_of_its_own(spec: ModelSpec, tokenizer: Any, tmp_path: Path) -> None:
    model = perturbed(spec)

    export_openclip(model, spec, tmp_path, tokenizer=tokenizer)
    report = verify_export(tmp_path, model.double(), tokenizer)
    assert report.captions == len(ODD_CAPTIONS)
    assert 0 < max(report.image_difference, report.text_difference) <= TOLERANCE


@pytest.mark.usefixtures("stock_in_process")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"preprocess_cfg": {"mean": [0.49, 0.46, 0.41]}}, "differs from the model"),
        pytest.param(
            {"model_cfg": {"init_logit_bias": 0.0}}, "do not both have a logit bias", marks=pytest.mark.long
        ),
    ],
)
def test_verification_detects_another_configuration(
    tmp_path: Path, config: dict[str, dict[str, Any]], message: str
) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    changed = json.loads((tmp_path / CONFIG).read_text())
    for part, values in config.items():
        changed[part] |= values
    (tmp_path / CONFIG).write_text(json.dumps(changed))
    with pytest.raises(ExportMismatch, match=message):
        verify_export(tmp_path, model)


@pytest.mark.usefixtures("stock_in_process")
def test_verification_detects_other_tokens(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path, tokenizer=WordPieceTokenizer(PIECES))
    swapped = [*PIECES[:5], *reversed(PIECES[5:])]
    with pytest.raises(ExportMismatch, match="caption 'a small red star"):
        verify_export(tmp_path, model, WordPieceTokenizer(swapped))


@pytest.mark.slow
@pytest.mark.long
def test_verification_detects_other_weights(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["text_projection"][0, 0] = float("nan")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ExportMismatch, match="differs from the model"):
        verify_export(tmp_path, model)


@pytest.mark.slow
def test_verification_says_what_stock_open_clip_cannot_load(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ExportMismatch, match="could not use local-dir:"):
        verify_export(tmp_path, model)


@pytest.mark.slow
@pytest.mark.long
def test_vit_b16_with_random_weights_is_the_same_in_open_clip(tmp_path: Path) -> None:
    spec = preset("vit_b16")
    model = build_model(spec, seed=1)
    export_openclip(model, spec, tmp_path)
    report = verify_export(tmp_path, model, samples=4)
    assert max(report.image_difference, report.text_difference) <= TOLERANCE


def test_features_of_the_reference_are_not_degenerate() -> None:
    """Equal features would prove little if every image had the same one."""
    features = perturbed(FLIP_SPEC).encode_image(some_images(FLIP_SPEC))
    assert (features @ features.T - torch.eye(4)).amax() < 0.999
