"""The way from an export to a timm ViT that the documentation shows, run as it stands there."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from flipscale.interop.openclip_export import export_openclip
from flipscale.models.flip import build_model
from flipscale.models.presets import preset
from flipscale.third_party import import_open_clip

DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation_and_export.md"


@pytest.mark.slow
def test_the_documented_tower_gives_the_models_features(tmp_path):
    import_open_clip()  # timm imports torchvision too
    spec = preset("vit_micro_p8", vocab_size=100, context_length=8)
    model = build_model(spec, seed=1)
    with torch.no_grad():
        assert model.visual.conv1.bias is not None
        model.visual.conv1.bias.normal_()
    export_openclip(model, spec, tmp_path / "OUT")
    (code,) = [block.split("```")[0] for block in DOCUMENT.read_text().split("```python\n")[1:]]
    names: dict = {}
    exec(code.replace("OUT/", f"{tmp_path}/OUT/"), names)
    tower = names["tower"].eval()
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = model.encode_image(images), functional.normalize(tower(images), dim=1)
        tokens = tower.forward_features(images)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-6)
    assert tokens.shape == (5, 1 + 16, spec.vision.width)
