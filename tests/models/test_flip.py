import dataclasses
import math

import pytest
import torch

from flipscale.models.flip import FLIP, build_model
from flipscale.models.inputs import Inputs
from flipscale.models.masking import visible_patches
from flipscale.models.presets import preset

FAMILIES = ["vit_micro_p8", "clip_micro_p8"]


def micro(name: str = "vit_micro_p8") -> FLIP:
    return build_model(preset(name, vocab_size=100))


def make_inputs(model: FLIP, batch: int = 4) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    side, length = model.spec.vision.image_size, model.spec.text.context_length
    keep = visible_patches(torch.arange(batch), model.spec.vision.patches, 0.5, seed=0)
    assert keep is not None
    return Inputs(
        torch.randint(256, (batch, 3, side, side), dtype=torch.uint8, generator=generator),
        torch.randint(100, (batch, length), generator=generator),
        keep,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_forward_gives_unit_features_and_the_scale(name: str) -> None:
    model = micro(name)
    images, texts, scale, *_ = model(make_inputs(model))
    assert images.shape == texts.shape == (4, 64)
    assert torch.allclose(images.norm(dim=1), torch.ones(4))
    assert torch.allclose(texts.norm(dim=1), torch.ones(4))
    assert scale.shape == ()
    assert scale.item() == pytest.approx(1 / 0.07)


def test_a_model_for_the_sigmoid_loss_also_gives_the_bias() -> None:
    """It begins as in SigLIP: scale 10, bias -10."""
    model = build_model(preset("vit_micro_p8", vocab_size=100, logit_bias=True))
    images, texts, scale, bias, _ = model(make_inputs(model))
    assert images.shape == texts.shape
    assert scale.shape == bias.shape == ()
    assert (scale.item(), bias.item()) == (pytest.approx(10), -10)
    assert dict(model.named_parameters())["logit_bias"].shape == (1,)
    assert "logit_bias" not in dict(micro().named_parameters())


def test_either_input_may_be_missing() -> None:
    model = micro()
    both = make_inputs(model)
    assert both.images is not None
    assert both.texts is not None

    images, texts, *_ = model(both)
    assert torch.equal(model.encode_image(both.images, both.keep), images)
    assert torch.equal(model.encode_text(both.texts), texts)
    assert model(Inputs(texts=both.texts))[0] is None
    assert model(Inputs(images=both.images))[1] is None


@pytest.mark.parametrize(
    ("stored", "scale", "gradient"),
    [(math.log(50), 50.0, 50.0), (-0.5, 1.0, 0.0), (math.log(100) + 0.1, 100.0, 0.0)],
)
def test_the_scale_is_clipped_in_the_forward_pass(stored: float, scale: float, gradient: float) -> None:
    model = micro()
    with torch.no_grad():
        model.logit_scale.fill_(stored)
    actual = model(Inputs()).scale
    actual.backward()
    assert model.logit_scale.grad is not None
    assert actual.item() == pytest.approx(scale)
    assert model.logit_scale.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("name", FAMILIES)
def test_double_precision_stays_double(name: str) -> None:
    model = micro(name)
    single = model(make_inputs(model))
    double = model.double()(make_inputs(model))
    for low, high in zip(single[:3], double[:3], strict=True):
        assert high.dtype == torch.float64
        assert (low - high).abs().max() <= 1e-5
        assert (low - high).abs().max() > 0


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_residual_streams_have_the_dtype_of_matrix_products(name: str, mixed: bool) -> None:
    model = micro(name)
    blocks = [block for transformer in model.transformers for block in transformer.resblocks]
    dtypes: list[tuple[torch.dtype, torch.dtype]] = []
    for block in blocks:
        block.register_forward_hook(lambda block, x, y: dtypes.append((x[0].dtype, y.dtype)))

    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        model(make_inputs(model))
    expected = torch.bfloat16 if mixed else torch.float32
    assert dtypes == [(expected, expected)] * len(blocks)


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_autocast_trains_and_gives_fp32_features(name: str) -> None:
    model = micro(name)
    exact = model(make_inputs(model))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(make_inputs(model))
        (rounded[0] @ rounded[1].T * rounded[2]).logsumexp(dim=1).sum().backward()
    for low, high in zip(rounded[:2], exact[:2], strict=True):
        assert low.dtype == torch.float32
        assert (low - high).abs().max() <= 0.02  # bf16 keeps 8 bits
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_deep_towers_in_bf16_stay_close_to_fp32() -> None:
    """A value in bf16 has 8 bits, 0.4 %; over 12 blocks roundings add up to about 1 % in either tower."""
    spec = micro().spec
    deep = {tower: dataclasses.replace(getattr(spec, tower), layers=12) for tower in ("vision", "text")}
    model = build_model(dataclasses.replace(spec, **deep))
    exact = model(make_inputs(model))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(make_inputs(model))
    for low, high in zip(rounded[:2], exact[:2], strict=True):
        assert (low - high).norm() <= 0.03 * high.norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_takes_part(name: str) -> None:
    model = micro(name)
    images, texts, scale, *_ = model(make_inputs(model))
    (images @ texts.T * scale).logsumexp(dim=1).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_shapes_need_no_memory() -> None:
    model = build_model(preset("vit_h14"), device="meta")
    with torch.device("meta"):
        images, texts, *_ = model(
            Inputs(
                torch.zeros(2, 3, 224, 224, dtype=torch.uint8),
                torch.zeros(2, 32, dtype=torch.int64),
                torch.zeros(2, 64, dtype=torch.int64),
            )
        )
    assert images.shape == texts.shape == (2, 1024)
    assert images.is_meta


def test_blocks_can_be_recomputed_without_changing_a_bit() -> None:
    from torch.utils.checkpoint import checkpoint

    plain, recomputed = micro(), micro()
    for block in (*recomputed.visual.transformer.resblocks, *recomputed.transformer.resblocks):
        forward = block.forward
        block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)
    for model in (plain, recomputed):
        images, texts, scale, *_ = model(make_inputs(model))
        (images @ texts.T * scale).logsumexp(dim=1).sum().backward()
    for (name, one), two in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad), name


@pytest.mark.slow
def test_blocks_are_one_graph_each() -> None:
    model = micro()
    eager = model(make_inputs(model))
    for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
        block.compile(fullgraph=True, backend="aot_eager")  # needs no C++ compiler
    compiled = model(make_inputs(model))
    compiled[0].sum().backward()
    for ours, theirs in zip(compiled[:3], eager[:3], strict=True):
        assert (ours - theirs).abs().max() <= 1e-5
