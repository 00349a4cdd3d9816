import pytest

from flipscale.errors import UserError
from flipscale.models.presets import PRESETS, preset
from flipscale.planning.flops import parameter_count

# The paper's shapes (table 9), counted by hand: image tower without positions and projection; text tower with
# the released vocabulary of 30,523 rows, without projection.
TOWERS = {
    "vit_b16": (85_647_360, 53_473_792),
    "vit_l16": (303_099_904, 108_522_240),
    "vit_l14": (302_915_584, 108_522_240),
    "vit_h14": (630_435_840, 333_599_744),
}
# The same model in OpenCLIP: 30,522 rows, the position table a tensor, no patch bias.
IN_OPEN_CLIP = {
    "vit_b16": 139_926_529,
    "vit_l16": 413_198_337,
    "vit_l14": 413_075_457,
    "vit_h14": 966_721_537,
}


@pytest.mark.parametrize("name", TOWERS)
def test_towers_have_the_papers_parameter_counts(name: str) -> None:
    count = parameter_count(preset(name, vocab_size=30_523))
    assert (count.vision, count.text) == TOWERS[name]


@pytest.mark.parametrize("name", IN_OPEN_CLIP)
def test_totals_are_open_clips(name: str) -> None:
    spec = preset(name)
    table = (1 + spec.vision.patches) * spec.vision.width
    assert parameter_count(spec).total + table - spec.vision.width == IN_OPEN_CLIP[name]


def test_h14_has_heads_of_80_channels() -> None:
    vision = preset("vit_h14").vision
    assert vision.width // vision.heads == 80


def test_every_flip_preset_has_a_clip_baseline_of_its_size() -> None:
    flip = {name.removeprefix("vit_") for name in PRESETS if name.startswith("vit_")}
    clip = {name.removeprefix("clip_") for name in PRESETS if name.startswith("clip_")}
    assert flip == clip
    assert all(name == spec.name for name, spec in PRESETS.items())


def test_sizes_can_be_overridden() -> None:
    spec = preset("vit_tiny_p8", image_size=48, patch_size=16, vocab_size=500, context_length=16)
    assert (spec.vision.image_size, spec.vision.patch_size, spec.vision.patches) == (48, 16, 9)
    assert (spec.text.vocab_size, spec.text.context_length) == (500, 16)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'vit_h14'"):
        preset("vit_h_14")


def test_an_image_that_patches_do_not_tile_is_refused_with_the_nearest_sizes() -> None:
    with pytest.raises(UserError, match=r"225 is not a multiple of the patch size 16.*224, 240"):
        preset("vit_b16", image_size=225)
