"""The counted activations against the storages that torch keeps from a forward pass."""

from __future__ import annotations

import pytest
import torch
from support.live_bytes import LiveBytes
from torch import Tensor

from flipscale.config import Sharding
from flipscale.models.flip import build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import visible_count, visible_patches, visible_tokens
from flipscale.models.packing import is_packable
from flipscale.models.presets import ModelSpec, preset
from flipscale.planning.activations import (
    ElementSizes,
    decoder_activations,
    image_activations,
    text_activations,
    weight_copies,
)
from flipscale.sharding.activation_checkpointing import apply_activation_checkpointing


def kept(
    spec: ModelSpec, sharding: Sharding, pairs: int, mask_ratio: float, text_mask_ratio: float = 0.0
) -> int:
    """Return the bytes that a forward pass makes and keeps for the backward, without weights and batch."""
    torch.set_num_threads(1)
    model = build_model(spec)
    apply_activation_checkpointing(model, sharding.activation_checkpointing)

    side = spec.vision.image_size
    images = torch.randint(256, (pairs, 3, side, side), dtype=torch.uint8)
    texts = torch.randint(spec.text.vocab_size - 1, (pairs, spec.text.context_length))
    keep = visible_patches(torch.arange(pairs), spec.vision.patches, mask_ratio, 0)
    keep_tokens = visible_tokens(texts, torch.arange(pairs), text_mask_ratio, 0, "random", spec.text.pool, 0)

    packable = is_packable(spec.text, text_mask_ratio)
    if packable:  # the longest captions: what memory must hold
        texts[:, -1] = spec.text.vocab_size - 1
    lengths = (spec.text.context_length,) * pairs if packable else None

    inputs = Inputs(images, texts, keep, keep_tokens, lengths)
    bf16 = sharding.precision == "bf16"
    with LiveBytes() as live, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        outputs = model(inputs, reconstruct=True)

    batch = [part for part in inputs if isinstance(part, Tensor)]
    held = live.held(without=(*model.parameters(), *model.buffers(), *batch))
    del outputs
    return held


def counted(
    spec: ModelSpec, sharding: Sharding, pairs: int, mask_ratio: float, text_mask_ratio: float = 0.0
) -> int:
    sizes = ElementSizes.of(sharding.precision, "cpu")
    visible = visible_count(spec.vision.patches, mask_ratio)
    image = image_activations(spec, pairs, visible, sharding, sizes)
    tokens = visible_count(spec.text.context_length, text_mask_ratio)
    text = text_activations(spec, pairs, tokens, sharding, sizes)
    decoder = decoder_activations(spec, pairs, visible, sharding, sizes)
    return image.kept + text.kept + decoder.kept + weight_copies(spec, sharding, sizes)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["none", "full", "selective", "every 2", "every 3"])
@pytest.mark.parametrize("name", ["vit_tiny_p8", "clip_tiny_p8", "vit_micro_p8"])
def test_counted_bytes_are_those_that_torch_keeps(
    name: str, mode: str, precision: str, mask_ratio: float
) -> None:
    spec = preset(name, vocab_size=100)
    sharding = Sharding.model_validate({"activation_checkpointing": mode, "precision": precision})
    measured = kept(spec, sharding, 8, mask_ratio)
    # A few hundred bytes of scalars and lengths are not counted.
    assert counted(spec, sharding, 8, mask_ratio) == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
@pytest.mark.parametrize("name", ["vit_tiny_p8", "clip_tiny_p8"])
def test_masked_texts_and_decoder_are_counted(name: str, mode: str, precision: str) -> None:
    spec = preset(name, vocab_size=100, decoder=(64, 3, 2))
    sharding = Sharding.model_validate({"activation_checkpointing": mode, "precision": precision})
    measured = kept(spec, sharding, 8, 0.75, 0.5)
    assert counted(spec, sharding, 8, 0.75, 0.5) == pytest.approx(measured, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "selective"])
def test_preset_of_the_paper_is_counted(mode: str) -> None:
    spec = preset("vit_b16", vocab_size=100)
    sharding = Sharding.model_validate({"activation_checkpointing": mode, "precision": "bf16"})
    assert counted(spec, sharding, 2, 0.5) == pytest.approx(kept(spec, sharding, 2, 0.5), rel=0.01)


@pytest.mark.parametrize(("strategy", "norm_input"), [("ddp", 4), ("fsdp", 2)])
def test_cuda_keeps_bf16_attention_and_the_inputs_of_norms(strategy: str, norm_input: int) -> None:
    """Per residual element of a bf16 block, CUDA keeps 14 values of 2 bytes and the inputs of two norms.

    A norm whose weights are fp32 keeps an fp32 copy of its input.
    """
    spec = preset("vit_h14")
    sharding = Sharding.model_validate({"strategy": strategy, "precision": "bf16"})
    one, two = (
        image_activations(spec, n, 256, sharding, ElementSizes.of("bf16", "cuda")).kept for n in (1, 2)
    )
    block = (two - one) / spec.vision.layers / (257 * spec.vision.width)
    assert block == pytest.approx(14 * 2 + 2 * norm_input, rel=0.02)
