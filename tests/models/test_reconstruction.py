"""The decoder and its loss against a decoder of another library and loops over patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.reference_blocks import run_blocks
from torch import Tensor, nn

from flipscale.models.flip import FLIP, build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import hidden_patches, visible_patches
from flipscale.models.presets import preset
from flipscale.models.reconstruction import Reconstruction
from flipscale.third_party import import_open_clip

DECODER = (32, 2, 4)
SIDE, GRID = 8, 4


def model_of(name: str = "vit_micro_p8") -> FLIP:
    """Return a model with no weight at its initial value."""
    model = build_model(preset(name, vocab_size=50, decoder=DECODER), seed=1)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def inputs(ratio: float = 0.75, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8, generator=generator)
    keep = visible_patches(torch.arange(batch), GRID**2, ratio, seed=0)
    assert keep is not None
    return images, keep


def decoder_of(model: FLIP) -> Reconstruction:
    assert model.reconstruction is not None
    return model.reconstruction


def slow_targets(image: Tensor, model: FLIP) -> list[np.ndarray]:
    """Return the targets of each patch of one image (3, 32, 32).

    The pixels, channel by channel, are normalised by their mean and standard deviation.
    """
    pixels = image.double().numpy() / 255.0
    targets = []
    for row in range(GRID):
        for column in range(GRID):
            values = []
            for channel in range(3):
                for y in range(row * SIDE, (row + 1) * SIDE):
                    for x in range(column * SIDE, (column + 1) * SIDE):
                        value = pixels[channel, y, x]
                        values.append((value - model.spec.mean[channel]) / model.spec.std[channel])
            patch = np.array(values)
            targets.append((patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6))
    return targets


def slow_positions(width: int) -> Tensor:
    """Return the class token's row, then one per patch: sines and cosines of the column, then of the row."""
    quarter = width // 4
    rows = [[0.0] * width]
    for row in range(GRID):
        for column in range(GRID):
            angles = [[place / 10000 ** (i / quarter) for i in range(quarter)] for place in (column, row)]
            rows.append([f(angle) for axis in angles for f in (np.sin, np.cos) for angle in axis])
    return torch.tensor(rows, dtype=torch.float32)


def slow_painting(model: FLIP, tokens: Tensor, visible: list[int]) -> Tensor:
    """Return the decoder's output for every patch of one image, from its tower's tokens (1 + K, width)."""
    decoder, spec = decoder_of(model), model.spec.decoder
    assert spec is not None
    sequence = [decoder.embed(tokens[0])]
    for patch in range(GRID**2):
        known = patch in visible
        sequence.append(decoder.embed(tokens[1 + visible.index(patch)]) if known else decoder.mask_token)
    x = run_blocks(decoder.transformer, spec, (torch.stack(sequence) + slow_positions(spec.width))[None])[0]
    normed = F.layer_norm(x[1:], (spec.width,), decoder.ln_post.weight, decoder.ln_post.bias, spec.norm_eps)
    return decoder.pixels(normed)


@pytest.mark.parametrize("ratio", [0.5, 0.75])
@pytest.mark.parametrize("name", ["vit_micro_p8", "clip_micro_p8"])
def test_the_loss_is_that_of_a_loop_over_patches(name: str, ratio: float) -> None:
    model = model_of(name)
    images, keep = inputs(ratio)
    with torch.no_grad():
        loss = model(Inputs(images=images, keep=keep), reconstruct=True).reconstruction
        tokens = model.visual.tokens(images, keep)
        errors = []
        for image, visible, row in zip(images, keep.tolist(), tokens, strict=True):
            painted, targets = slow_painting(model, row, visible).numpy(), slow_targets(image, model)
            for patch in range(GRID**2):
                if patch not in visible:
                    errors.append(float(((painted[patch] - targets[patch]) ** 2).mean()))
    assert len(errors) == 3 * (16 - keep.shape[1])
    assert float(loss) == pytest.approx(sum(errors) / len(errors), rel=1e-5)


def test_the_decoder_is_that_of_another_library() -> None:
    """Hugging Face's ViTMAE decoder with our weights paints the same; it also makes its own positions."""
    import_open_clip()  # fixes torchvision if its version needs it
    from transformers.models import vit_mae as published

    model = model_of()
    ours, (width, layers, heads) = decoder_of(model), DECODER
    config = published.ViTMAEConfig(
        hidden_size=model.spec.vision.width,
        decoder_hidden_size=width,
        decoder_num_hidden_layers=layers,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=4 * width,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        image_size=GRID * SIDE,
        patch_size=SIDE,
    )
    config._attn_implementation = "eager"
    theirs = published.modeling_vit_mae.ViTMAEDecoder(config, GRID**2)
    assert torch.allclose(theirs.decoder_pos_embed[0], ours.positional_embedding, atol=1e-6)
    state = {f"decoder_{part}.{kind}": getattr(ours.embed, kind) for part in ("embed",) for kind in KINDS}
    state |= {f"decoder_norm.{kind}": getattr(ours.ln_post, kind) for kind in KINDS}
    state |= {"mask_token": ours.mask_token[None, None], "decoder_pos_embed": theirs.decoder_pos_embed}
    # They order the pixels of a patch by place and then by channel.
    weight = ours.pixels.weight.view(3, SIDE**2, width).transpose(0, 1).reshape(-1, width)
    state |= {"decoder_pred.weight": weight, "decoder_pred.bias": ours.pixels.bias.view(3, -1).T.flatten()}
    names = next(
        names for names in LAYER_NAMES if f"decoder_layers.0.{names[0]}.weight" in theirs.state_dict()
    )
    for number, block in enumerate(ours.transformer.resblocks):
        own, prefix = block.state_dict(), f"decoder_layers.{number}."
        for kind in KINDS:
            for theirs_name, rows in zip(names, own[f"attn.in_proj_{kind}"].chunk(3), strict=False):
                state[f"{prefix}{theirs_name}.{kind}"] = rows
            for theirs_name, name in zip(names[3:], OWN_NAMES, strict=True):
                state[f"{prefix}{theirs_name}.{kind}"] = own[f"{name}.{kind}"]
    theirs.load_state_dict(state)

    images, keep = inputs()
    hidden = hidden_patches(keep, GRID**2)
    restore = torch.cat([keep, hidden], dim=1).argsort(dim=1)
    with torch.no_grad():
        painted = theirs.eval()(model.visual.tokens(images, keep), restore).logits
        painted = painted.view(3, GRID**2, SIDE**2, 3).transpose(2, 3).flatten(2)
        targets = torch.tensor(np.array([slow_targets(image, model) for image in images]))
        errors = (painted - targets).square().mean(dim=2)
        expected = errors.gather(1, hidden).mean()
        loss = model(Inputs(images=images, keep=keep), reconstruct=True).reconstruction
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


KINDS = ("weight", "bias")
OWN_NAMES = ("attn.out_proj", "ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")
# Queries, keys and values, and then as in OWN_NAMES: of transformers 5, and of those before it.
LAYER_NAMES = (
    (
        *(f"attention.{part}_proj" for part in "qkvo"),
        *("layernorm_before", "layernorm_after", "mlp.fc1", "mlp.fc2"),
    ),
    (
        *(f"attention.attention.{part}" for part in ("query", "key", "value")),
        *("attention.output.dense", "layernorm_before", "layernorm_after"),
        *("intermediate.dense", "output.dense"),
    ),
)


def test_hidden_patches_are_the_others() -> None:
    _, keep = inputs(batch=5)
    for visible, hidden in zip(keep.tolist(), hidden_patches(keep, 16).tolist(), strict=True):
        assert hidden == [patch for patch in range(16) if patch not in visible]


def test_decoder_leaves_features_unchanged_and_runs_only_on_request() -> None:
    images, keep = inputs()
    model, bare = model_of(), build_model(preset("vit_micro_p8", vocab_size=50))
    bare.load_state_dict({n: p for n, p in model.state_dict().items() if not n.startswith("reconstruction.")})
    features = model(Inputs(images=images, keep=keep))
    assert features.reconstruction is None
    assert bare(Inputs(images=images, keep=keep), reconstruct=True).reconstruction is None
    assert torch.equal(features.images, bare.encode_image(images, keep))
    assert model(Inputs(texts=torch.zeros(2, 32, dtype=torch.int64)), reconstruct=True).reconstruction is None


def test_every_decoder_parameter_gets_a_gradient_and_zero_if_nothing_is_hidden() -> None:
    images, keep = inputs()
    model = model_of()
    model(Inputs(images=images, keep=keep), reconstruct=True).reconstruction.backward()
    decoder = dict(decoder_of(model).named_parameters())
    assert [name for name, p in decoder.items() if p.grad is None or not p.grad.any()] == []
    assert model.visual.class_embedding.grad is not None  # and so does the tower
    model.zero_grad()
    nothing = model(Inputs(images=images), reconstruct=True).reconstruction
    assert float(nothing.detach()) == 0.0
    nothing.backward()
    assert all(p.grad is not None and not p.grad.any() for p in decoder.values())
    assert all(p.grad is None for p in model.visual.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    images, keep = inputs()
    with torch.no_grad():
        exact = model_of()(Inputs(images=images, keep=keep), reconstruct=True).reconstruction
    model = model_of()
    if dtype is torch.float64:
        model.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = model(Inputs(images=images, keep=keep), reconstruct=True).reconstruction
    assert loss.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-5 if dtype is torch.float64 else 1e-2)


def test_bytes_and_normalised_floats_have_the_same_loss() -> None:
    images, keep = inputs()
    model = model_of()
    mean, std = (torch.tensor(part)[:, None, None] for part in (model.spec.mean, model.spec.std))
    floats = (images / 255.0 - mean) / std
    with torch.no_grad():
        losses = [
            model(Inputs(images=i, keep=keep), reconstruct=True).reconstruction for i in (images, floats)
        ]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)


def test_decoder_begins_at_the_variance_of_its_targets_with_the_weights_of_mae() -> None:
    """Every patch has variance 1, and the first output is nearly independent of the patch."""
    model = build_model(preset("vit_tiny_p8", vocab_size=50, decoder=(64, 2, 2)))
    decoder = decoder_of(model)
    assert float(decoder.mask_token.detach().std()) == pytest.approx(0.02, rel=0.5)
    assert not any(p.any() for n, p in decoder.named_parameters() if n.endswith("bias") and "ln_" not in n)
    bound = (6 / (64 + 128)) ** 0.5
    assert 0.95 * bound < decoder.embed.weight.abs().max() <= bound
    assert isinstance(decoder.pixels, nn.Linear)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)
    keep = visible_patches(torch.arange(4), 64, 0.75, seed=0)
    loss = model(Inputs(images=images, keep=keep), reconstruct=True).reconstruction
    assert 0.99 <= float(loss.detach()) < 2.5
