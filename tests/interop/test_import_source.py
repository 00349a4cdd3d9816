"""Imports of models that OpenCLIP knows by name, and of directories in its format."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flipscale.cli.import_model import import_model
from flipscale.errors import UserError
from flipscale.interop import verification
from flipscale.interop.import_source import find_import_source
from flipscale.interop.openclip_directory import CONFIG
from flipscale.interop.openclip_import import import_openclip
from flipscale.interop.weights import WEIGHTS, read_weights
from flipscale.models.presets import preset
from flipscale.third_party import import_open_clip

open_clip = import_open_clip()


CFG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 128, "patch_size": 16},
    "text_cfg": {"width": 64, "heads": 2, "layers": 2},
}


@pytest.fixture
def named(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of a small model that open_clip knows in addition to its own."""
    name = "ViT-tiny-32"
    root = tmp_path_factory.mktemp("configs")
    (root / f"{name}.json").write_text(json.dumps(CFG))
    (root / f"{name}-quickgelu.json").write_text(json.dumps({**CFG, "quick_gelu": True}))
    open_clip.add_model_config(root)
    return name


def stock(**changes: Any) -> torch.nn.Module:
    """Return OpenCLIP's own model without a weight at a trivial value."""
    torch.manual_seed(0)
    model = open_clip.CLIP(**CFG, **changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.usefixtures("stock_in_process")
@pytest.mark.parametrize("form", ["training checkpoint", "state dict", "safetensors", "half precision"])
def test_every_form_of_weights_is_read_as_open_clip_reads_it(
    form: str, named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = stock().state_dict()
    file = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "training checkpoint":
        wrapped = {f"module.{name}": value for name, value in state.items()}
        torch.save({"epoch": 3, "name": "x", "state_dict": wrapped, "optimizer": {"lr": 0.1}}, file)
    elif form == "safetensors":
        save_file(state, file)
    elif form == "half precision":
        state = {name: value.half() for name, value in state.items()}
        torch.save(state, file)
    else:
        torch.save(state, file)
    import_model(named, tmp_path / "out", weights=file, pretrained=None, random=False)
    printed = capsys.readouterr().out.splitlines()

    assert printed[0].startswith(f"{named} computes here as in stock open_clip")
    assert printed[1].startswith(f"{tmp_path / 'out'} imported and verified with stock open_clip")
    _, imported = import_openclip(tmp_path / "out")
    imported["logit_scale"] = imported["logit_scale"].reshape(())

    assert all(torch.equal(imported[name], state[name].float()) for name in state)
    provenance = json.loads((tmp_path / "out" / CONFIG).read_text())["flipscale"]["provenance"]

    assert (provenance["imported from"], provenance["weights"]) == (named, file.name)


@pytest.mark.usefixtures("stock_in_process")
def test_scale_that_half_precision_rounds_above_the_limit_is_imported_clipped(
    named: str, tmp_path: Path
) -> None:
    """Models that are trained for long reach the limit of the scale."""
    state = {name: value.half() for name, value in stock().state_dict().items()}
    state["logit_scale"].fill_(math.log(100))

    assert state["logit_scale"].float().exp() > 100.02
    torch.save(state, tmp_path / "w.pt")
    out = tmp_path / "out"
    import_model(named, out, weights=tmp_path / "w.pt", pretrained=None, random=False)

    assert load_file(out / WEIGHTS)["logit_scale"].exp().item() == pytest.approx(100.0, rel=1e-6)
    # An export must hold the scale clipped already.
    spec, tensors = import_openclip(out)
    model = verification.build_model(spec)
    model.load_state_dict(tensors)
    exported = load_file(out / WEIGHTS)
    exported["logit_scale"].fill_(4.60546875)
    save_file(exported, out / WEIGHTS)

    with pytest.raises(verification.ExportMismatch, match="differs from the model"):
        verification.verify_export(out, model)
    with pytest.raises(verification.ExportMismatch, match="differs from the model"):
        import_model(str(out), tmp_path / "again", weights=None, pretrained=None, random=False)


@pytest.mark.usefixtures("stock_in_process")
def test_quick_gelu_is_another_activation(named: str, tmp_path: Path) -> None:
    torch.save(stock(quick_gelu=True).state_dict(), tmp_path / "w.pt")
    quick = tmp_path / "quick"
    import_model(f"{named}-quickgelu", quick, weights=tmp_path / "w.pt", pretrained=None, random=False)
    spec, _ = import_openclip(quick)

    assert (spec.vision.gelu, spec.text.gelu) == ("quick", "quick")
    # The same weights under the plain name compute something else, and verification detects it.
    config = json.loads((quick / CONFIG).read_text())
    del config["model_cfg"]["quick_gelu"]
    model = verification.build_model(spec)
    model.load_state_dict(import_openclip(quick)[1])
    (quick / CONFIG).write_text(json.dumps(config))

    with pytest.raises(verification.ExportMismatch, match="differs from the model"):
        verification.verify_export(quick, model)


@pytest.mark.usefixtures("stock_in_process")
def test_random_weights_are_those_of_a_name_or_a_directory(named: str, tmp_path: Path) -> None:
    import_model(named, tmp_path / "by_name", weights=None, pretrained=None, random=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / CONFIG).write_text(json.dumps({"model_cfg": CFG}))
    import_model(str(plain), tmp_path / "by_directory", weights=None, pretrained=None, random=True)
    by_name, by_directory = (import_openclip(tmp_path / out)[1] for out in ("by_name", "by_directory"))
    assert all(torch.equal(by_name[name], by_directory[name]) for name in by_name)


@pytest.mark.usefixtures("stock_in_process")
def test_random_weights_have_the_fixed_positions_of_their_configuration(tmp_path: Path) -> None:
    config = {**CFG, "vision_cfg": {**CFG["vision_cfg"], "pos_embed_type": "sin_cos_2d"}}
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / CONFIG).write_text(json.dumps({"model_cfg": config}))
    out = tmp_path / "out"
    import_model(str(tmp_path / "plain"), out, weights=None, pretrained=None, random=True)
    spec, state = import_openclip(out)

    assert (spec.vision.positions, spec.vision.patch_bias) == ("sincos", True)
    assert not state["visual.conv1.bias"].any()
    made = open_clip.CLIP(**config).visual.positional_embedding.detach()
    positions = load_file(out / WEIGHTS)["visual.positional_embedding"]
    torch.testing.assert_close(positions, made, rtol=0.0, atol=1e-6)


@pytest.mark.usefixtures("stock_in_process")
def test_directory_of_the_hub_is_imported(tmp_path: Path) -> None:
    """It has a configuration, and weights as a pickle of tensors."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / CONFIG).write_text(json.dumps({"model_cfg": CFG}))
    torch.save(stock().state_dict(), tmp_path / "hub" / "open_clip_pytorch_model.bin")
    import_model(str(tmp_path / "hub"), tmp_path / "out", weights=None, pretrained=None, random=False)
    assert (tmp_path / "out" / WEIGHTS).is_file()
    with pytest.raises(UserError, match="is the source itself"):
        import_model(str(tmp_path / "out"), tmp_path / "out", weights=None, pretrained=None, random=False)


@pytest.mark.long
def test_vit_b_32_with_random_weights_computes_what_open_clip_computes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_model("ViT-B-32", tmp_path, weights=None, pretrained=None, random=True)
    assert capsys.readouterr().out.count("stock open_clip") == 2
    assert import_openclip(tmp_path)[0] == replace(preset("clip_b32"), name="ViT-B-32")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("ViT-B-33", {"random": True}, "nearest names: ViT-B-32, "),
        ("ViT-B-32", {}, r"shape without weights; .* laion2b_s34b_b79k.* or --random"),
        ("ViT-B-32", {"pretrained": "laion2b_s34b"}, "nearest tags: laion2b_s34b_b79k, "),
        ("ViT-B-32", {"pretrained": "openai"}, "trained with QuickGELU; import ViT-B-32-quickgelu instead"),
        ("ViT-B-32", {"pretrained": "openai", "random": True}, "exclude each other"),
        (
            "ViT-B-32",
            {"pretrained": "laion2b_s34b_b79k"},
            "not on this machine; where the network is",
        ),
        ("convnext_base", {"random": True}, "timm_model_name .* has only OpenCLIP's plain ViTs"),
        ("ViT-B-16-SigLIP", {"random": True}, "timm_model_name .* has only OpenCLIP's plain ViTs"),
        ("coca_ViT-B-32", {"random": True}, "multimodal_cfg .* has only OpenCLIP's plain ViTs"),
        ("ViT-g-14", {"random": True}, "mlp_ratio 4.3637 cannot be imported"),
        ("RN50", {"random": True}, "layers is .* whole number"),
    ],
)
def test_refusal_names_what_exists(
    source: str, options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    arguments: dict[str, Any] = {"weights": None, "pretrained": None, "random": False, **options}
    with pytest.raises(UserError, match=message):
        import_model(source, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_tag_is_found_in_the_cache_of_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "open_clip_model.safetensors"

    def in_cache(repository: str, name: str) -> str | None:
        assert repository == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
        return str(cached) if name == cached.name else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", in_cache)
    source = find_import_source("ViT-B-32", None, "laion2b_s34b_b79k", False)
    assert (source.weights, source.pretrained) == (cached, "laion2b_s34b_b79k")
    assert source.config["preprocess_cfg"]["resize_mode"] == "shortest"


def test_weights_of_another_width_are_named_with_both_shapes(named: str, tmp_path: Path) -> None:
    narrow = {**CFG, "vision_cfg": {**CFG["vision_cfg"], "width": 64}}
    torch.save(open_clip.CLIP(**narrow).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError) as refused:
        import_model(named, tmp_path / "out", weights=tmp_path / "w.pt", pretrained=None, random=False)
    message = str(refused.value)
    assert "'visual.class_embedding' is (64,) in the file, (128,) by the configuration" in message
    assert "more tensors differ; name the model that they were trained as" in message
    assert "\n" not in message


def program(model: torch.nn.Module) -> torch.jit.ScriptModule:
    """Return a model as OpenAI published CLIP: a program in half precision with three numbers as tensors."""
    for name, size in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(size))
    mask: Any = model._buffers.pop("attn_mask")
    model.attn_mask = mask  # a plain attribute, as there: programs have no passing buffers
    return torch.jit.script(model.half())


@pytest.mark.slow
@pytest.mark.usefixtures("stock_in_process")
def test_program_as_openai_published_clip_can_be_converted(named: str, tmp_path: Path) -> None:
    state = stock().half().state_dict()
    archive = tmp_path / "ViT.pt"
    converted = tmp_path / "ViT.safetensors"
    program(stock()).save(archive)

    with pytest.raises(UserError, match="is a TorchScript program") as refused:
        read_weights(archive)
    command = str(refused.value).split("\n", 1)[1]
    subprocess.check_call([sys.executable, *shlex.split(command)[1:]])

    assert load_file(converted).keys() == state.keys()
    earlier = tmp_path / "earlier.safetensors"  # as this command wrote it before it left the numbers out
    save_file(torch.jit.load(archive).state_dict(), earlier)

    assert len(load_file(earlier)) == len(state) + 3

    for file in (converted, earlier):
        out = tmp_path / f"{file.stem}_out"
        import_model(named, out, weights=file, pretrained=None, random=False)
        _, imported = import_openclip(out)
        assert all(
            torch.equal(imported[name], state[name].float().reshape(imported[name].shape)) for name in state
        )
