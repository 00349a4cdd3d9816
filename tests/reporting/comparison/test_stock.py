"""Stock open_clip models behind the interface of evaluation, and names that do not exist."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.reported_models import Models

from flipscale.errors import UserError
from flipscale.interop.stock import find_stock, load_stock
from flipscale.third_party import import_open_clip

CPU = torch.device("cpu")


@pytest.mark.slow
def test_features_are_those_of_open_clip_with_its_preprocessing(models: Models) -> None:
    source = f"local-dir:{models.stock}"
    open_clip = import_open_clip()
    reference, _, preprocess = open_clip.create_model_and_transforms(source)
    reference.eval()
    pixels = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = torch.stack([preprocess(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pixels])
    captions = ["a red star", "", "Café &amp; more"]
    ids = open_clip.get_tokenizer(source)(captions)
    stock = load_stock(source, CPU)
    assert (stock.image_size, stock.resizing) == (32, None)
    assert stock.model.parameters == sum(p.numel() for p in reference.parameters())
    assert torch.equal(stock.tokenizer(captions), ids)
    with torch.no_grad():
        ours = stock.model.encode_image(pixels), stock.model.encode_text(stock.tokenizer(captions))
        theirs = reference.encode_image(images, normalize=True), reference.encode_text(ids, normalize=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)  # fp32: the colours are normalised in another order
    with pytest.raises(UserError, match="whole images"):
        stock.model.encode_image(pixels, torch.zeros(5, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ViT-B-33:laion2b_e16", "nearest names: ViT-B-32:laion2b_e16"),
        ("ViT-B-32", "ViT-B-32 is a shape without weights; give ViT-B-32:TAG"),
        ("ViT-B-32:laion2b_e17", "nearest tags: laion2b_e16"),
        ("ViT-B-32:/nowhere/weights.pt", "there is no file /nowhere/weights.pt"),
        ("local-dir:/nowhere", "there is no directory /nowhere"),
    ],
)
def test_unknown_names_get_nearest_ones(source: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        find_stock(source)
    assert message in str(caught.value)


class _Harmful:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.proof,)


def test_weights_that_could_run_code_are_refused_unread(models: Models, tmp_path: Path) -> None:
    harmful = tmp_path / "model"
    shutil.copytree(models.stock, harmful)
    (harmful / "open_clip_model.safetensors").unlink()
    with open(harmful / "open_clip_pytorch_model.bin", "wb") as file:
        pickle.dump({"state_dict": _Harmful(tmp_path / "proof")}, file)
    with pytest.raises(UserError, match="could run code"):
        load_stock(f"local-dir:{harmful}", CPU)
    with pytest.raises(UserError, match="could run code"):
        load_stock(f"ViT-B-32:{harmful / 'open_clip_pytorch_model.bin'}", CPU)
    assert not (tmp_path / "proof").exists()


def test_weights_of_another_shape_are_reported(models: Models) -> None:
    with pytest.raises(UserError, match=r"cannot load .*weights belong to this shape"):
        load_stock(f"ViT-S-32-alt:{models.stock / 'open_clip_model.safetensors'}", CPU)
