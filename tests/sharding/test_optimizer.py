"""AdamW as the released FLIP recipe uses it, and steps that the device skips by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flipscale.config import Optimizer, Sharding
from flipscale.errors import UserError
from flipscale.models.flip import build_model
from flipscale.models.presets import preset
from flipscale.sharding import optimizer as adamw


def test_weight_decay_spares_what_the_released_recipe_spares() -> None:
    model = build_model(preset("vit_micro_p8", vocab_size=50), device="meta")
    spared = {name for name, _ in model.named_parameters() if not adamw.decays(name)}
    assert all(
        name.endswith("bias") or ".ln_" in f".{name}" or name == "positional_embedding" for name in spared
    )
    for name in ("logit_scale", "visual.class_embedding", "token_embedding.weight", "visual.proj"):
        assert adamw.decays(name)
    for name in ("ln_final.weight", "visual.transformer.resblocks.0.attn.in_proj_bias", "visual.conv1.bias"):
        assert name in spared
    clip = build_model(preset("clip_micro_p8"), device="meta")
    assert not adamw.decays("visual.positional_embedding")
    assert "visual.positional_embedding" in dict(clip.named_parameters())


def one_step(finite: bool, *, steps: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5, 3))
    optimizer = adamw.build_optimizer([("weight", parameter)], Optimizer())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(steps):
        parameter.grad = torch.randn(5, 3)
        adamw.skip_unless(optimizer, torch.tensor(True))
        optimizer.step()
    parameter.grad = torch.randn(5, 3) if finite else torch.full((5, 3), torch.nan)
    adamw.skip_unless(optimizer, torch.tensor(finite))
    optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    before, state_before = one_step(True, steps=1)
    after, state_after = one_step(False, steps=2)
    assert torch.equal(before, after)
    for name in ("step", "exp_avg", "exp_avg_sq"):
        assert torch.equal(state_before[name], state_after[name])


def test_the_update_is_that_of_plain_adamw() -> None:
    ours, _ = one_step(True, steps=3)
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(5, 3))
    plain = torch.optim.AdamW(
        [parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2, foreach=False
    )
    for _ in range(4):
        parameter.grad = torch.randn(5, 3)
        plain.step()
    torch.testing.assert_close(ours, parameter.detach())


def test_a_reset_forgets_moments_and_bias_correction() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = adamw.build_optimizer([("weight", parameter)], Optimizer())
    parameter.grad = torch.ones(4)
    optimizer.step()
    assert adamw.updates(optimizer) == 1
    adamw.reset_moments(optimizer, ("exp_avg", "exp_avg_sq"))
    assert adamw.updates(optimizer) == 0
    assert not optimizer.state[parameter]["exp_avg"].any()


def test_unknown_optimizer_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"no optimizer.name 'sgd'; use adamw"):
        adamw.check_optimizer(Optimizer(name="sgd"), Sharding())


@pytest.mark.parametrize("strategy", ["zero1", "zero3", "fairscale_oss", "fairscale_fsdp"])
def test_optimizer_of_whole_parameters_is_refused_by_strategies_that_cut_them(
    strategy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adamw.OptimizerKind(adamw.build_adamw, moments=("exp_avg",), splits_anywhere=False)
    monkeypatch.setattr(adamw, "OPTIMIZERS", {**adamw.OPTIMIZERS, "whole": whole})
    settings = Optimizer(name="whole")
    adamw.check_optimizer(settings, Sharding(strategy="fsdp"))
    with pytest.raises(UserError, match=f"sharding.strategy {strategy} .*whole"):
        adamw.check_optimizer(settings, Sharding(strategy=strategy))
