"""FLOPs and parameters against what torch counts and what the paper gives."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import visible_count
from flipscale.models.presets import ModelSpec, preset
from flipscale.planning.flops import forward_macs, parameter_count, training_flops


def flop_ratio(spec: ModelSpec, mask_ratio: float, *, embed_hidden: bool = False) -> float:
    """Return the cost of a masked step over that of an unmasked one (paper, table 1a)."""
    masked = forward_macs(spec, mask_ratio, embed_hidden=embed_hidden)
    return masked.total / forward_macs(spec).total


def measured_flops(spec: ModelSpec, mask_ratio: float, text_mask_ratio: float = 0.0) -> int:
    """Return what torch counts in a real forward pass over one pair (shapes only)."""
    model = build_model(spec, device="meta")
    kept = visible_count(spec.vision.patches, mask_ratio)
    tokens = visible_count(spec.text.context_length, text_mask_ratio)
    side = spec.vision.image_size

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        inputs = Inputs(
            torch.zeros(1, 3, side, side, dtype=torch.uint8),
            torch.zeros(1, spec.text.context_length, dtype=torch.int64),
            torch.zeros(1, kept, dtype=torch.int64) if mask_ratio else None,
            torch.zeros(1, tokens, dtype=torch.int64) if text_mask_ratio else None,
        )
        model(inputs, reconstruct=True)

    return counter.get_total_flops()


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 0.75])
@pytest.mark.parametrize("name", ["vit_b16", "vit_l16", "vit_h14", "vit_micro_p8", "clip_b16"])
def test_counted_flops_are_those_that_torch_measures(name: str, mask_ratio: float) -> None:
    assert 2 * forward_macs(preset(name), mask_ratio).total == measured_flops(preset(name), mask_ratio)


@pytest.mark.parametrize(("mask_ratio", "text_mask_ratio"), [(0.5, 0.0), (0.75, 0.5)])
@pytest.mark.parametrize("name", ["vit_l16", "vit_micro_p8", "clip_b16"])
def test_masked_texts_and_decoder_are_counted(name: str, mask_ratio: float, text_mask_ratio: float) -> None:
    spec = preset(name, decoder=(64, 3, 2))
    macs = forward_macs(spec, mask_ratio, text_mask_ratio)
    assert 2 * macs.total == measured_flops(spec, mask_ratio, text_mask_ratio)
    assert macs.decoder > 0
    assert forward_macs(spec).decoder == 0


def test_masked_texts_cost_what_table_1c_gives() -> None:
    spec = preset("vit_l16")
    whole, half = (training_flops(spec, 1, 0.75, ratio) for ratio in (0.0, 0.5))
    assert half / whole == pytest.approx(0.92, abs=0.005)


@pytest.mark.parametrize(
    ("name", "half", "three_quarters"),
    [("vit_l16", 0.517, 0.282), ("vit_b16", 0.528, 0.300), ("vit_h14", 0.522, 0.289)],
)
def test_masking_saves_what_the_paper_gives(name: str, half: float, three_quarters: float) -> None:
    """The reference embeds all patches before masking; flipscale embeds fewer and must save more."""
    spec = preset(name)

    for mask_ratio, reference in ((0.5, half), (0.75, three_quarters)):
        assert flop_ratio(spec, mask_ratio, embed_hidden=True) == pytest.approx(reference, abs=0.002)
        embedding = spec.vision.patches * 3 * spec.vision.patch_size**2 * spec.vision.width
        saved = mask_ratio * embedding / forward_macs(spec).total
        own = flop_ratio(spec, mask_ratio)
        assert own == pytest.approx(flop_ratio(spec, mask_ratio, embed_hidden=True) - saved, abs=1e-12)


def test_l16_costs_what_the_paper_gives() -> None:
    macs = forward_macs(preset("vit_l16"))
    assert macs.image / 1e9 == pytest.approx(61.6, abs=0.05)
    assert macs.text / 1e9 == pytest.approx(2.74, abs=0.005)
    assert macs.text / macs.image == pytest.approx(0.0445, abs=0.00005)


def test_training_costs_three_forward_passes() -> None:
    spec = preset("vit_h14")
    # A forward pass of one pair takes 353.6 GFLOPs (calculated from the paper's shapes).
    assert training_flops(spec, 1, 0.0) / 1e9 == pytest.approx(3 * 353.6, rel=0.002)
    assert training_flops(spec, 1000, 0.5) == 1000 * training_flops(spec, 1, 0.5)


def test_parameters_are_counted_on_the_meta_device() -> None:
    count = parameter_count(preset("vit_micro_p8"))
    model = build_model(preset("vit_micro_p8"))
    assert count.total == sum(p.numel() for p in model.parameters())
    assert count.vision == sum(p.numel() for p in model.visual.parameters()) - model.visual.proj.numel()
