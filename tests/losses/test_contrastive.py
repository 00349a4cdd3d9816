from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from flipscale.errors import UserError
from flipscale.losses import tiles
from flipscale.losses.contrastive import contrastive_loss

BENCHMARK = Path(__file__).parents[2] / "tools" / "bench" / "contrastive_memory.py"


def dense_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Compute the loss from its definition: two cross-entropies of the whole matrix."""
    logits = scale * images @ texts.T
    labels = torch.arange(len(images))
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def features(
    batch: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float64, paired: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return normalised features whose pairs are alike by `paired` in 0..1."""
    generator = torch.Generator().manual_seed(seed)
    images, noise = torch.randn(2, batch, width, generator=generator, dtype=dtype)
    return normalize(images), normalize(paired * images + (1 - paired) * noise)


def value_and_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    leaves = [value.detach().clone().requires_grad_() for value in inputs]
    value = loss(*leaves)
    return value.detach(), torch.autograd.grad(3.0 * value, leaves)


def relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.abs().max() / reference.abs().max().clamp(min=1e-30))


def assert_same(
    loss: Callable[..., Tensor], reference: Callable[..., Tensor], *inputs: Tensor, tolerance: float
):
    value, gradients = value_and_gradients(loss, *inputs)
    expected, expected_gradients = value_and_gradients(reference, *inputs)
    assert value.shape == ()
    assert value.dtype == expected.dtype
    assert abs(value - expected) <= tolerance * max(1.0, abs(expected))
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == wanted.dtype
        assert gradient.shape == wanted.shape
        assert (
            relative(gradient - wanted, wanted) <= tolerance or (gradient - wanted).abs().max() <= tolerance
        )


@pytest.fixture
def narrow_columns(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that sets the columns of a tile, so that small matrices are cut both ways as well."""
    return lambda width: monkeypatch.setattr(tiles, "_COLUMNS_ELSEWHERE", width)


@settings(deadline=None)
@given(
    batch=st.integers(1, 40),
    width=st.integers(1, 16),
    tile=st.integers(1, 50),
    columns=st.integers(1, 50),
    scale=st.sampled_from([0.0, 1.0, 14.3, 100.0]),
    paired=st.sampled_from([0.0, 0.5, 0.97, 1.0]),
    seed=st.integers(0, 1000),
)
def test_equals_the_dense_loss_in_fp64(batch, width, tile, columns, scale, paired, seed):
    images, texts = features(batch, width, seed, paired=paired)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_COLUMNS_ELSEWHERE", columns)
        assert_same(
            lambda *inputs: contrastive_loss(*inputs, tile=tile),
            dense_loss,
            images,
            texts,
            torch.tensor(scale, dtype=torch.float64),
            tolerance=1e-12,
        )


@pytest.mark.parametrize("batch", [1, 2, 511, 512, 513, 1300])
@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_equals_the_dense_loss_in_fp32(batch: int, scale: float):
    images, texts = features(batch, 64, dtype=torch.float32)
    # The logits themselves are rounded by 2^-24 * scale = 6e-6 at scale 100, in either order of the sums.
    assert_same(
        contrastive_loss, dense_loss, images, texts, torch.tensor(scale), tolerance=6e-8 * scale + 1e-6
    )


def test_columns_beyond_one_block():
    images, texts = features(2 * tiles._COLUMNS_ELSEWHERE + 5, 8)
    assert_same(contrastive_loss, dense_loss, images, texts, torch.tensor(20.0).double(), tolerance=1e-12)


def test_identical_features_give_log_batch():
    same = normalize(torch.ones(37, 8, dtype=torch.float64))
    loss = contrastive_loss(same, same, torch.tensor(100.0, dtype=torch.float64), tile=10)
    assert loss.item() == pytest.approx(torch.log(torch.tensor(37.0, dtype=torch.float64)).item(), abs=1e-12)


def test_a_perfect_fit_keeps_its_small_loss(narrow_columns):
    """At scale 100 and margin 0.15 a negative adds 3e-7 to the loss, which fp32 loses in 100 + 3e-7."""
    narrow_columns(16)
    images = torch.cat([torch.full((48, 1), 0.85**0.5), 0.15**0.5 * torch.eye(48)], dim=1)
    inputs = (images, images, torch.tensor(100.0))
    value, gradients = value_and_gradients(lambda *x: contrastive_loss(*x, tile=10), *inputs)
    expected, expected_gradients = value_and_gradients(dense_loss, *(x.double() for x in inputs))
    assert 1e-5 < expected < 2e-5
    assert value.item() == pytest.approx(expected.item(), rel=0.01)  # 1 + 1.4e-5, rounded by 6e-8
    # The same rounding, divided by the margin: 1 - p and the sum over the negatives all but cancel.
    assert gradients[2].item() == pytest.approx(expected_gradients[2].item(), rel=0.05)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_huge_logits_neither_overflow_nor_vanish(size: float):
    images, texts = features(9, 4)
    assert_same(
        lambda *inputs: contrastive_loss(*inputs, tile=2),
        dense_loss,
        images,
        texts,
        torch.tensor(size, dtype=torch.float64),
        tolerance=1e-11,  # logits of 1e4: 1e4 times the rounding of logits of 1
    )


def test_gradcheck(narrow_columns):
    narrow_columns(3)
    inputs = [value.requires_grad_() for value in (*features(5, 3), torch.tensor(7.0, dtype=torch.float64))]
    assert torch.autograd.gradcheck(lambda *x: contrastive_loss(*x, tile=2), inputs)


def test_second_derivatives_are_refused():
    images, texts = features(4, 3)
    images.requires_grad_()
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    loss = weight * contrastive_loss(images, texts, torch.tensor(1.0).double())
    (gradient,) = torch.autograd.grad(loss, images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_features_are_computed_in_fp32(dtype: torch.dtype):
    images, texts = (value.to(dtype) for value in features(300, 32, dtype=torch.float32))
    scale = torch.tensor(100.0)
    value, gradients = value_and_gradients(lambda *x: contrastive_loss(*x, tile=128), images, texts, scale)
    expected, expected_gradients = value_and_gradients(contrastive_loss, images.float(), texts.float(), scale)
    assert value.dtype == torch.float32
    assert value == pytest.approx(expected.item(), rel=1e-6)
    for gradient, wanted in zip(gradients[:2], expected_gradients[:2], strict=True):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, wanted.to(dtype))
    assert gradients[2] == pytest.approx(expected_gradients[2].item(), rel=1e-4)


def test_autocast_changes_nothing():
    inputs = (*features(70, 16, dtype=torch.float32), torch.tensor(100.0))
    plain, plain_gradients = value_and_gradients(contrastive_loss, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradients = value_and_gradients(contrastive_loss, *inputs)
    assert value.dtype == torch.float32
    assert torch.equal(value, plain)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain_gradients, strict=True))


def test_scale_of_one_element_and_frozen_inputs():
    images, texts = features(10, 4)
    scale = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    contrastive_loss(images, texts, scale).backward()
    assert scale.grad is not None
    assert scale.grad.shape == (1,)
    with torch.no_grad():
        assert not contrastive_loss(images, texts, scale).requires_grad


def test_a_second_backward_pass_adds_the_same_gradient():
    images, texts = features(10, 4)
    images.requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(5.0).double(), tile=3)
    (once,) = torch.autograd.grad(loss, images, retain_graph=True)
    (again,) = torch.autograd.grad(loss, images)
    assert torch.equal(once, again)


def test_nan_features_are_not_hidden():
    images, texts = features(10, 4)
    images[3, 1] = torch.nan
    assert contrastive_loss(images, texts, torch.tensor(5.0).double(), tile=3).isnan()


@pytest.mark.parametrize("tile", [0, -1])
def test_a_tile_without_rows_is_refused(tile: int):
    with pytest.raises(UserError, match=f"tiles of {tile} rows: set a tile of at least 1"):
        contrastive_loss(*features(4, 2), torch.tensor(1.0), tile=tile)


@pytest.mark.parametrize(
    ("images", "texts", "problem"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), "one shape"),
        (torch.ones(3, 2), torch.ones(3, 3), "one shape"),
        (torch.ones(0, 2), torch.ones(0, 2), "n >= 1"),
        (torch.ones(3), torch.ones(3), "one shape"),
        (torch.ones(3, 2), torch.ones(3, 2).double(), "one dtype"),
    ],
)
def test_features_that_do_not_pair_are_refused(images: Tensor, texts: Tensor, problem: str):
    with pytest.raises(ValueError, match=problem):
        contrastive_loss(images, texts, torch.tensor(1.0))


@pytest.mark.slow  # starts an interpreter, so that the peak is only that of this loss
@pytest.mark.parametrize("loss", ["flipscale", "flipscale_sigmoid"])
def test_memory_stays_far_below_one_matrix_of_logits(loss: str):
    """The allocator changes resident memory by a few MiB, so that the test only bounds the total."""
    command = [sys.executable, BENCHMARK, "measure", loss, "8192", "--width=64", "--threads=1"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["peak_growth_bytes"] < 128 * 2**20  # one such matrix: 256 MiB
