import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.beside_stock import normalized, perturbed, some_images, some_texts, stock_differences

from flipscale.data.text.tokenizer import ClipTokenizer, WordPieceTokenizer
from flipscale.errors import UserError
from flipscale.interop.mapping import open_clip_model_cfg, open_clip_state
from flipscale.interop.openclip_directory import CLASSIC, CONFIG
from flipscale.interop.openclip_export import export_openclip
from flipscale.interop.openclip_import import import_openclip
from flipscale.interop.verification import ODD_CAPTIONS, ExportMismatch, verify_export
from flipscale.interop.weights import WEIGHTS
from flipscale.models.flip import build_model
from flipscale.models.presets import ModelSpec, preset
from flipscale.third_party import import_open_clip

open_clip = import_open_clip()

PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "red",
    "blue",
    "star",
    "circle",
    "##s",
    "of",
    "left",
]
FLIP_SPEC = preset("vit_tiny_p8", vocab_size=len(PIECES))
CLIP_SPEC = preset("clip_tiny_p8")
SIGMOID_SPEC = preset("vit_tiny_p8", vocab_size=len(PIECES), logit_bias=True)
SPECS = [FLIP_SPEC, CLIP_SPEC, SIGMOID_SPEC]
TOLERANCE = 1e-5


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name + "_bias" * spec.logit_bias)
def test_stock_open_clip_gives_the_models_features(spec: ModelSpec, tmp_path: Path) -> None:
    model = perturbed(spec)
    export_openclip(model, spec, tmp_path)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    assert max(stock_differences(stock, model)) <= TOLERANCE
    assert (stock.logit_scale.exp() / model()[2]).item() == pytest.approx(1.0, abs=1e-6)
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


def test_the_logits_of_a_sigmoid_model_are_open_clips(tmp_path: Path) -> None:
    model = perturbed(SIGMOID_SPEC)
    export_openclip(model, SIGMOID_SPEC, tmp_path)
    stock = open_clip.create_model(f"local-dir:{tmp_path}").eval()
    visual: Any = stock.visual
    images, texts = some_images(SIGMOID_SPEC), some_texts(SIGMOID_SPEC)
    floats = normalized(images, visual.preprocess_cfg["mean"], visual.preprocess_cfg["std"])
    with torch.no_grad():
        theirs, _ = stock.get_logits(floats, texts)  # type: ignore[operator]
        image_features, text_features, scale, bias, _ = model(images, texts)
    ours = scale * image_features @ text_features.T + bias
    assert bias.item() < -9
    assert (theirs - ours).abs().max() <= TOLERANCE * float(scale)


def test_models_of_open_clip_can_be_imported(tmp_path: Path) -> None:
    """Another direction of the same judge: weights that OpenCLIP made, under its own defaults."""
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
def test_clip_presets_are_open_clips_models(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        stock = open_clip.CLIP(**open_clip.get_model_config(theirs)).state_dict()
        configured = open_clip.CLIP(**open_clip_model_cfg(preset(ours))).state_dict()
    shapes = {
        name: tensor.shape for name, tensor in build_model(preset(ours), device="meta").state_dict().items()
    }
    shapes["logit_scale"] = torch.Size([])
    assert shapes == {name: tensor.shape for name, tensor in stock.items()}
    assert shapes == {name: tensor.shape for name, tensor in configured.items()}


def test_a_scale_beyond_the_clip_is_exported_clipped(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    export_openclip(model, FLIP_SPEC, tmp_path)
    assert load_file(tmp_path / WEIGHTS)["logit_scale"].exp().item() == pytest.approx(100.0)


def test_the_classic_file_holds_the_same_weights_and_is_not_taken_first(tmp_path: Path) -> None:
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    classic = torch.load(tmp_path / CLASSIC, weights_only=True)["state_dict"]
    weights = load_file(tmp_path / WEIGHTS)
    assert all(torch.equal(classic[name], weights[name]) for name in weights.keys() | classic.keys())
    assert Path(open_clip.factory._find_checkpoint_in_dir(tmp_path)).name == WEIGHTS
    stock = open_clip.CLIP(**open_clip_model_cfg(FLIP_SPEC))
    open_clip.load_checkpoint(stock, str(tmp_path / CLASSIC), strict=True)


def test_provenance_goes_beside_the_model_and_into_its_card(tmp_path: Path) -> None:
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
def test_open_clip_finds_the_tokenizer(spec: ModelSpec, tokenizer: Any, kind: str, tmp_path: Path) -> None:
    export_openclip(perturbed(spec), spec, tmp_path, tokenizer=tokenizer)
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    assert type(theirs).__name__ == kind
    assert torch.equal(theirs(list(ODD_CAPTIONS)), tokenizer(ODD_CAPTIONS))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the tokenizer gives 16 ids below 13, but the model takes 32"):
        export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path, tokenizer=WordPieceTokenizer(PIECES, 16))
    assert not any(tmp_path.iterdir())


def test_only_an_empty_directory_or_an_earlier_export_is_written_to(tmp_path: Path) -> None:
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


def test_an_interrupted_export_does_not_load_and_can_be_repeated(tmp_path: Path) -> None:
    class Interrupted(Exception): ...

    class FailingTokenizer(WordPieceTokenizer):
        def save(self, directory: Path) -> None:
            raise Interrupted

    model = perturbed(FLIP_SPEC)
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


def edited(directory: Path, section: str, key: str, value: Any) -> None:
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
def test_what_cannot_be_imported_is_named(
    section: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    export_openclip(perturbed(FLIP_SPEC), FLIP_SPEC, tmp_path)
    edited(tmp_path, section, key, value)
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


def test_trained_positions_are_not_mistaken_for_the_fixed_table(tmp_path: Path) -> None:
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
def test_a_flip_that_others_saved_has_its_patch_bias_again(origin: str, tmp_path: Path) -> None:
    """Without flipscale's header the bias is in the positions alone."""
    model = perturbed(FLIP_SPEC)
    export_openclip(model, FLIP_SPEC, tmp_path)
    tensors, bias = load_file(tmp_path / WEIGHTS), model.state_dict()["visual.conv1.bias"]
    if origin == "averaged":
        other = open_clip_state(build_model(FLIP_SPEC, seed=7).state_dict(), FLIP_SPEC)
        tensors, bias = {name: (tensors[name] + other[name]) / 2 for name in tensors}, bias / 2
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


def test_positions_that_are_no_table_with_one_bias_are_learned(tmp_path: Path) -> None:
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_verification_notices_other_weights_other_pixels_and_other_tokens(tmp_path: Path) -> None:
    model, tokenizer = perturbed(FLIP_SPEC), WordPieceTokenizer(PIECES)
    export_openclip(model, FLIP_SPEC, tmp_path, tokenizer=tokenizer)
    config = json.loads((tmp_path / CONFIG).read_text())

    changed = json.loads(json.dumps(config))
    changed["preprocess_cfg"]["mean"][0] += 0.01
    (tmp_path / CONFIG).write_text(json.dumps(changed))
    with pytest.raises(ExportMismatch, match="differs from the model"):
        verify_export(tmp_path, model, tokenizer)

    (tmp_path / CONFIG).write_text(json.dumps(config))
    without = json.loads(json.dumps(config))
    without["model_cfg"]["init_logit_bias"] = 0.0
    (tmp_path / CONFIG).write_text(json.dumps(without))
    with pytest.raises(ExportMismatch, match="do not both have a logit bias"):
        verify_export(tmp_path, model, tokenizer)

    (tmp_path / CONFIG).write_text(json.dumps(config))
    swapped = [*PIECES[:5], *reversed(PIECES[5:])]
    with pytest.raises(ExportMismatch, match="caption 'a small red star"):
        verify_export(tmp_path, model, WordPieceTokenizer(swapped))

    tensors = load_file(tmp_path / WEIGHTS)
    tensors["text_projection"][0, 0] = float("nan")
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ExportMismatch, match="differs from the model"):
        verify_export(tmp_path, model, tokenizer)

    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ExportMismatch, match="could not use local-dir:"):
        verify_export(tmp_path, model, tokenizer)


@pytest.mark.slow
def test_vit_b16_with_random_weights_is_the_same_in_open_clip(tmp_path: Path) -> None:
    spec = preset("vit_b16")
    model = build_model(spec, seed=1)
    export_openclip(model, spec, tmp_path)
    report = verify_export(tmp_path, model, samples=4)
    assert max(report.image_difference, report.text_difference) <= TOLERANCE


def test_features_of_the_reference_are_not_degenerate() -> None:
    """Parity would be cheap if every image had the same feature."""
    features = perturbed(FLIP_SPEC).encode_image(some_images(FLIP_SPEC))
    assert (features @ features.T - torch.eye(4)).amax() < 0.999
