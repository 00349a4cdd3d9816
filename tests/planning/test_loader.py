"""How many loader cores a GPU needs."""

from __future__ import annotations

import pytest

from flipscale.models.presets import preset
from flipscale.planning.flops import training_flops
from flipscale.planning.loader import loader_need


@pytest.mark.parametrize(("mask_ratio", "images"), [(0.5, 715), (0.75, 1290)])
def test_what_an_h100_eats_of_vit_h14(mask_ratio, images):
    """The figures of an independent calculation, which counts MLP and attention alike but other rounding."""
    need = loader_need(training_flops(preset("vit_h14"), 1, mask_ratio), 500.0)
    assert need.images_per_second == pytest.approx(images, rel=0.03)
    assert need.cores == need.images_per_second / 500.0
