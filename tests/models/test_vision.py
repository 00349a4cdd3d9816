import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flipscale.models.flip import FLIP, build_model
from flipscale.models.masking import visible_patches
from flipscale.models.presets import preset
from flipscale.models.vision import sincos_positions
from flipscale.third_party import import_open_clip

FAMILIES = ["vit_micro_p8", "clip_micro_p8"]
PATCHES = 16


def perturbed(name: str) -> FLIP:
    """Return a model with no weight at its initial value, so that biases count as well."""
    model = build_model(preset(name, vocab_size=100))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def some_images(batch: int = 6) -> Tensor:
    return torch.randint(
        256, (batch, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )


def some_mask(batch: int = 6) -> Tensor:
    keep = visible_patches(torch.arange(batch), PATCHES, 0.5, seed=0)
    assert keep is not None
    return keep


def hidden_pixels(keep: Tensor) -> Tensor:
    """Return (B, 32, 32) booleans, true for the pixels of hidden patches."""
    hidden = torch.ones(len(keep), PATCHES, dtype=torch.bool).scatter_(1, keep, False)
    grid = hidden.view(-1, 4, 4)
    return grid.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def normalized(model: FLIP, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (model.spec.mean, model.spec.std))
    return (images / 255 - mean) / std


def embed_all_then_select(model: FLIP, images: Tensor, keep: Tensor | None) -> Tensor:
    """Embed in the paper's order: convolve everything, add the positions, drop the hidden patches."""
    visual, spec = model.visual, model.spec.vision
    patches = F.conv2d(
        normalized(model, images), visual.conv1.weight, visual.conv1.bias, stride=spec.patch_size
    )
    patches = patches.flatten(2).transpose(1, 2) + visual.positional_embedding[1:]
    if keep is not None:
        patches = torch.stack([patches[i, keep[i]] for i in range(len(images))])
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(images), 1, -1)
    x = visual.ln_post(visual.transformer(visual.ln_pre(torch.cat([first, patches], dim=1))))
    pooled = x[:, 0] if spec.pool == "class_token" else x[:, 1:].mean(dim=1)
    return F.normalize(pooled @ visual.proj, dim=-1)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("masked", [True, False])
def test_embedding_only_the_visible_patches_changes_nothing(name: str, masked: bool) -> None:
    model, images = perturbed(name), some_images()
    keep = some_mask() if masked else None
    difference = model.encode_image(images, keep) - embed_all_then_select(model, images, keep)
    assert difference.abs().max() <= 1e-6


def test_keeping_every_patch_equals_no_mask() -> None:
    model, images = perturbed("vit_micro_p8"), some_images()
    every = torch.arange(PATCHES).expand(len(images), -1)
    assert torch.equal(model.encode_image(images, every), model.encode_image(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_bytes_are_normalised_as_the_spec_says(name: str) -> None:
    model, images, keep = perturbed(name), some_images(), some_mask()
    difference = model.encode_image(images, keep) - model.encode_image(normalized(model, images), keep)
    assert difference.abs().max() <= 1e-6


def test_channels_last_images_give_the_same() -> None:
    model, images, keep = perturbed("vit_micro_p8"), some_images(), some_mask()
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(model.encode_image(channels_last, keep), model.encode_image(images, keep))


def test_hidden_pixels_change_nothing() -> None:
    model, images, keep = perturbed("vit_micro_p8"), some_images(), some_mask()
    hidden = hidden_pixels(keep)[:, None]
    assert torch.equal(
        model.encode_image(images.masked_fill(hidden, 255), keep), model.encode_image(images, keep)
    )
    not_numbers = normalized(model, images).masked_fill(hidden, float("nan"))
    assert model.encode_image(not_numbers, keep).isfinite().all()


def test_only_visible_pixels_get_a_gradient() -> None:
    model, keep = perturbed("vit_micro_p8"), some_mask()
    images = normalized(model, some_images()).requires_grad_()
    model.encode_image(images, keep)[:, 0].sum().backward()
    assert images.grad is not None
    touched = (images.grad != 0).any(dim=1)
    assert torch.equal(touched, ~hidden_pixels(keep))


@pytest.mark.parametrize(("width", "grid"), [(64, 4), (768, 14), (1280, 16)])
def test_sincos_positions_are_open_clips(width: int, grid: int) -> None:
    theirs = import_open_clip().pos_embed.get_2d_sincos_pos_embed(width, grid, cls_token=True)
    assert torch.equal(sincos_positions(width, grid), torch.from_numpy(theirs).float())


def test_fixed_tables_survive_casts_and_late_allocation() -> None:
    spec = preset("vit_micro_p8")
    wanted = sincos_positions(spec.vision.width, spec.vision.grid)
    with torch.device("meta"):
        model = FLIP(spec)
    assert model.visual.positional_embedding.is_meta
    for moved in (model.to_empty(device="cpu"), model.to(torch.bfloat16), model.double()):
        assert torch.equal(moved.visual.positional_embedding, wanted)
        assert moved.visual.conv1.pixel_scale.dtype == torch.float32
    assert not any("positional" in name or "pixel" in name for name in model.visual.state_dict())


def test_images_of_another_size_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="images of shape"):
        perturbed("vit_micro_p8").encode_image(torch.zeros(1, 3, 64, 64))
