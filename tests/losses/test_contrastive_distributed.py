"""Both losses on 2 and 4 real processes (gloo) under DDP, against one process that holds the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from support.spawned import spawn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from torch.nn.parallel import DistributedDataParallel

from flipscale.distributed.ranks import Pending, Ranks
from flipscale.losses import tiles
from flipscale.losses.contrastive import contrastive_loss
from flipscale.losses.sigmoid import sigmoid_loss

pytestmark = pytest.mark.slow  # each case starts 2 or 4 processes


class Towers(nn.Module):
    """Two linear towers with a learned scale and bias, as small as a CLIP can be."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.image, self.text = nn.Linear(6, 5), nn.Linear(4, 5)
        self.log_scale, self.bias = nn.Parameter(torch.tensor(3.0)), nn.Parameter(torch.tensor(-2.0))
        self.double()

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            normalize(self.image(images)),
            normalize(self.text(texts)),
            self.log_scale.exp(),
            self.bias * 1.0,
        )


def dense_contrastive(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    logits = scale * images @ texts.T + bias
    labels = torch.arange(len(images))
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def dense_sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(images), dtype=images.dtype) - 1
    return -logsigmoid(signs * (scale * images @ texts.T + bias)).sum() / len(images)


def tiled_contrastive(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, **where) -> Tensor:
    # The softmax does not see a constant added to all logits, but DDP waits for every parameter's gradient.
    return contrastive_loss(images, texts, scale, tile=3, **where) + 0 * bias


def tiled_sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, **where) -> Tensor:
    return sigmoid_loss(images, texts, scale, bias, tile=3, **where)


LOSSES: list[tuple[Callable[..., Tensor], Callable[..., Tensor]]] = [
    (tiled_contrastive, dense_contrastive),
    (tiled_sigmoid, dense_sigmoid),
]


def batch_of(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    return (
        torch.randn(size, 6, generator=generator, dtype=torch.float64),
        torch.randn(size, 4, generator=generator, dtype=torch.float64),
    )


def check_full_batch_gradients(rank: int, world_size: int) -> None:
    for columns in (2048, 5):  # one block of columns, and several that do not divide
        tiles._COLUMNS_ELSEWHERE = columns  # pyrefly: ignore[bad-assignment]: the constant of this process
        for local in (1, 2, 7):
            images, texts = batch_of(local * world_size)
            mine = slice(rank * local, (rank + 1) * local)
            for tiled, dense in LOSSES:
                model, whole = DistributedDataParallel(Towers()), Towers()
                loss = tiled(*model(images[mine], texts[mine]))
                (2.0 * loss).backward()
                expected = dense(*whole(images, texts))
                (2.0 * expected).backward()

                assert abs(loss - expected) <= 1e-12, (tiled, local, columns)
                losses = [torch.empty_like(loss) for _ in range(world_size)]
                dist.all_gather(losses, loss.detach())
                assert all(torch.equal(other, losses[0]) for other in losses)
                for (name, ours), theirs in zip(
                    model.module.named_parameters(), whole.parameters(), strict=True
                ):
                    assert ours.grad is not None
                    assert theirs.grad is not None
                    assert (ours.grad - theirs.grad).abs().max() <= 1e-12, (tiled, name, local, columns)


def check_half_precision(rank: int, world_size: int) -> None:
    generator = torch.Generator().manual_seed(3)
    whole = [normalize(torch.randn(5 * world_size, 16, generator=generator)).bfloat16() for _ in range(2)]
    mine = [value[rank * 5 : rank * 5 + 5].clone().requires_grad_() for value in whole]
    rounded = [value.float().requires_grad_() for value in whole]
    scale = torch.tensor(100.0)
    loss = contrastive_loss(mine[0], mine[1], scale, tile=2)
    expected = dense_contrastive(rounded[0], rounded[1], scale, torch.tensor(0.0))
    assert abs(loss - expected) <= 1e-5 * expected
    loss.backward()
    expected.backward()
    for ours, theirs in zip(mine, rounded, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        wanted = theirs.grad[rank * 5 : rank * 5 + 5] * world_size
        torch.testing.assert_close(ours.grad, wanted.bfloat16(), rtol=1e-2, atol=1e-5)


def check_a_group_is_its_own_world(rank: int, world_size: int) -> None:
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    half, place = divmod(rank, 2)
    images, texts = batch_of(3 * world_size)
    for tiled, dense in LOSSES:
        model, whole = Towers(), Towers()
        mine = slice(rank * 3, rank * 3 + 3)
        both = slice(half * 6, half * 6 + 6)
        loss = tiled(*model(images[mine], texts[mine]), group=groups[half])
        expected = dense(*whole(images[both], texts[both]))
        assert abs(loss - expected) <= 1e-12, (tiled, place)
        loss.backward()
        expected.backward()
        for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
            assert ours.grad is not None
            assert theirs.grad is not None
            dist.all_reduce(ours.grad, group=groups[half])
            assert (ours.grad / 2 - theirs.grad).abs().max() <= 1e-12


def check_overlapped_sums_change_no_bit(rank: int, world_size: int) -> None:
    """The losses start to sum the gradients of a block, and finish the block before; see TextGradients."""
    images, texts = (value.float() for value in batch_of(7 * world_size))
    mine = slice(rank * 7, rank * 7 + 7)
    start = Ranks.start_scatter_sum

    def blocking(own: Ranks, values: Tensor) -> Pending:
        return Pending(start(own, values).wait())

    def gradients(tiled: Callable[..., Tensor]) -> list[Tensor]:
        model = Towers().float()
        loss = tiled(*model(images[mine], texts[mine]))
        return list(torch.autograd.grad(loss, list(model.parameters())))

    for columns in (2048, 5):
        with mock.patch.object(tiles, "_COLUMNS_ELSEWHERE", columns):
            for tiled, _ in LOSSES:
                overlapped = gradients(tiled)
                with mock.patch.object(Ranks, "start_scatter_sum", blocking):
                    expected = gradients(tiled)
                assert all(torch.equal(a, b) for a, b in zip(overlapped, expected, strict=True))


def check_two_processes(rank: int, world_size: int) -> None:
    check_full_batch_gradients(rank, world_size)
    check_half_precision(rank, world_size)
    check_overlapped_sums_change_no_bit(rank, world_size)


def check_four_processes(rank: int, world_size: int) -> None:
    check_full_batch_gradients(rank, world_size)
    check_a_group_is_its_own_world(rank, world_size)
    check_overlapped_sums_change_no_bit(rank, world_size)


def test_two_processes(tmp_path: Path):
    spawn(check_two_processes, 2, tmp_path)


def test_four_processes(tmp_path: Path):
    spawn(check_four_processes, 4, tmp_path)
