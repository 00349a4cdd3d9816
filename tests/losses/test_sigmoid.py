from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from flipscale.errors import UserError
from flipscale.losses import tiles
from flipscale.losses.sigmoid import sigmoid_loss
from flipscale.third_party import import_open_clip


def dense_loss(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Compute the loss from its definition: a log-sigmoid of every entry of the matrix."""
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -logsigmoid(signs * (scale * images @ texts.T + bias)).sum() / len(images)


def inputs(
    batch: int, width: int, scale: float, bias: float, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = torch.randn(2, batch, width, generator=generator, dtype=dtype)
    values = [normalize(images), normalize(images + texts), torch.tensor(scale), torch.tensor(bias)]
    return [value.to(dtype).requires_grad_() for value in values]


def assert_same(values: list[Tensor], tile: int, tolerance: float):
    value, expected = sigmoid_loss(*values, tile=tile), dense_loss(*values)
    assert value.shape == ()
    assert value.dtype == expected.dtype
    assert abs(value - expected) <= tolerance * max(1.0, abs(expected))
    gradients = torch.autograd.grad(3.0 * value, values)
    for gradient, wanted in zip(gradients, torch.autograd.grad(3.0 * expected, values), strict=True):
        assert gradient.shape == wanted.shape
        assert (gradient - wanted).abs().max() <= tolerance * max(1.0, wanted.abs().max())


@settings(deadline=None)
@given(
    batch=st.integers(1, 40),
    width=st.integers(1, 16),
    tile=st.integers(1, 50),
    columns=st.integers(1, 50),
    scale=st.sampled_from([0.0, 1.0, 10.0, 100.0]),
    bias=st.sampled_from([-10.0, 0.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_dense_loss_in_fp64(batch, width, tile, columns, scale, bias, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_COLUMNS_ELSEWHERE", columns)
        assert_same(inputs(batch, width, scale, bias, seed=seed), tile, 1e-12)


@pytest.mark.parametrize("batch", [1, 513, 1300])
def test_equals_the_dense_loss_in_fp32(batch: int):
    assert_same(inputs(batch, 64, 10.0, -10.0, torch.float32), 512, 2e-6)


def test_equals_open_clip():
    images, texts, scale, bias = inputs(100, 16, 10.0, -10.0)
    judge = import_open_clip().loss.SigLipLoss()
    expected = judge(images, texts, scale, bias)
    assert sigmoid_loss(images, texts, scale, bias, tile=30).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


def test_gradcheck(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tiles, "_COLUMNS_ELSEWHERE", 3)
    assert torch.autograd.gradcheck(lambda *x: sigmoid_loss(*x, tile=2), inputs(5, 3, 7.0, -2.0))


def test_without_gradients():
    values = inputs(20, 4, 10.0, -10.0)
    with torch.no_grad():
        loss = sigmoid_loss(*values, tile=6)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(dense_loss(*values).item(), rel=1e-12)


def test_autocast_changes_nothing():
    values = inputs(70, 16, 10.0, -10.0, torch.float32)
    plain = sigmoid_loss(*values)
    gradients = torch.autograd.grad(plain, values)
    with torch.autocast("cpu", torch.bfloat16):
        value = sigmoid_loss(*values)
        assert value.dtype == torch.float32
        assert torch.equal(value, plain)
        for gradient, wanted in zip(torch.autograd.grad(value, values), gradients, strict=True):
            assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("number", range(4))
def test_gradient_of_one_input(number: int):
    values = inputs(10, 4, 10.0, -10.0)
    wanted = torch.autograd.grad(sigmoid_loss(*values), values)[number]
    alone = [value.detach() for value in values]
    alone[number].requires_grad_()
    assert torch.equal(torch.autograd.grad(sigmoid_loss(*alone), alone[number])[0], wanted)


def test_half_features_and_scalars_of_one_element():
    wide = inputs(50, 16, 10.0, -10.0, torch.float32)
    half = [
        wide[0].detach().bfloat16(),
        wide[1].detach().bfloat16(),
        *(v.detach().reshape(1) for v in wide[2:]),
    ]
    rounded = [v.float().requires_grad_() for v in half[:2]] + [
        v[0].clone().requires_grad_() for v in half[2:]
    ]
    half = [value.requires_grad_() for value in half]
    value, expected = sigmoid_loss(*half, tile=20), dense_loss(*rounded)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = torch.autograd.grad(value, half)
    for leaf, gradient, wanted in zip(half, gradients, torch.autograd.grad(expected, rounded), strict=True):
        assert gradient.dtype == leaf.dtype
        torch.testing.assert_close(gradient, wanted.to(leaf.dtype).reshape(leaf.shape), rtol=1e-2, atol=1e-6)


def test_a_tile_without_rows_is_refused():
    with pytest.raises(UserError, match="set a tile of at least 1"):
        sigmoid_loss(*inputs(4, 2, 1.0, 0.0), tile=0)
