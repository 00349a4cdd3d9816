import math

import pytest
import torch

from flipscale.interop.openclip_config import open_clip_model_cfg
from flipscale.models.flip import FLIP, build_model
from flipscale.models.initialization import initial_value
from flipscale.models.presets import PRESETS, preset
from flipscale.third_party import import_open_clip


@pytest.mark.parametrize("name", ["vit_micro_p8", "clip_micro_p8"])
def test_every_parameter_is_initialised(name: str) -> None:
    with torch.device("meta"):
        model = FLIP(preset(name, vocab_size=100))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(math.nan)
    model.init_weights(seed=0)
    assert [n for n, p in model.named_parameters() if not p.isfinite().all()] == []
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_rule_for_every_parameter(name: str) -> None:
    spec = PRESETS[name]
    seen = set()
    for parameter, tensor in build_model(spec, device="meta").named_parameters():
        kind = parameter.split("resblocks.")[-1].split(".", 1)[-1]
        if kind not in seen and tensor.numel() < 5_000_000:  # one of each kind, to keep it short
            seen.add(kind)
            assert initial_value(parameter, tensor.shape, spec, seed=0).shape == tensor.shape


def test_values_depend_only_on_the_seed_and_the_name() -> None:
    spec = preset("vit_micro_p8", vocab_size=100)
    model, again, other = build_model(spec, seed=3), build_model(spec, seed=3), build_model(spec, seed=4)
    torch.rand(10)  # the global generator has no say
    for (name, one), two, three in zip(
        model.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, two)
        assert torch.equal(one, initial_value(name, one.shape, spec, seed=3))
        if one.unique().numel() > 1:
            assert not torch.equal(one, three), name
    first, second = (model.state_dict()[f"transformer.resblocks.{i}.mlp.c_fc.weight"] for i in (0, 1))
    assert not torch.equal(first, second)


def test_a_double_model_starts_from_the_same_values() -> None:
    spec = preset("vit_micro_p8", vocab_size=100)
    double = FLIP(spec).double()
    double.init_weights(seed=0)
    for one, two in zip(double.parameters(), build_model(spec, seed=0).parameters(), strict=True):
        assert torch.equal(one, two.double())


def test_flip_starts_as_the_papers_code() -> None:
    """Xavier-uniform matrices, N(0, 0.02) tables, zero biases, unit norms, scale 1 / 0.07."""
    model = build_model(preset("vit_tiny_p8"))
    width, side = 128, 8
    bounds = {
        "visual.conv1.weight": math.sqrt(6 / (3 * side**2 + width)),
        "in_proj_weight": math.sqrt(1.5 / width),
        "out_proj.weight": math.sqrt(6 / (2 * width)),
        "c_fc.weight": math.sqrt(6 / (5 * width)),
        "c_proj.weight": math.sqrt(6 / (5 * width)),
        "visual.proj": math.sqrt(6 / (2 * width)),
        "text_projection": math.sqrt(6 / (2 * width)),
    }
    for name, parameter in model.named_parameters():
        bound = next((bound for ending, bound in bounds.items() if name.endswith(ending)), None)
        if bound is not None:
            assert 0.99 * bound < parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
        elif name.endswith("_embedding") or name == "token_embedding.weight":
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2 if parameter.dim() == 1 else 0.03)
        elif name == "logit_scale":
            assert parameter.item() == pytest.approx(math.log(1 / 0.07))
        else:
            expected = 1.0 if ".ln_" in f".{name}" and name.endswith("weight") else 0.0
            assert (parameter == expected).all(), name


def test_clip_starts_as_open_clip() -> None:
    spec = preset("clip_tiny_p8")
    ours = dict(build_model(spec).named_parameters())
    torch.manual_seed(0)
    stock = import_open_clip().CLIP(**open_clip_model_cfg(spec))
    for name, theirs in stock.named_parameters():
        mine = ours[name].reshape(theirs.shape)
        if theirs.unique().numel() == 1:
            assert torch.allclose(mine, theirs), name
            continue
        tolerance = 6 / math.sqrt(theirs.numel())  # of a standard deviation: well over chance
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=tolerance), name
        assert abs((mine.mean() - theirs.mean()).item()) < tolerance * theirs.std().item(), name
        # A uniform distribution ends at 1.73 standard deviations, a normal one does not.
        uniform = (theirs.abs().max() / theirs.std()).item() < 1.9
        assert ((mine.abs().max() / mine.std()).item() < 1.9) == uniform, name
