"""The paper's linear probe: LARS against its definition, the schedule against its formula, and a training."""

import math

import pytest
import torch
from support.classifier_samples import exported_model, labelled_tar
from torch import nn

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.interop.load_model import load_model
from flipscale.transfer.augmented_batches import AugmentedBatches
from flipscale.transfer.classifier_training import CosineSchedule, EpochLog, peak_learning_rate
from flipscale.transfer.image_features import ImageFeatures
from flipscale.transfer.labelled_images import labelled_images
from flipscale.transfer.lars_probe import LarsRecipe, lars, lars_head, train_lars_head
from flipscale.transfer.passes import Passes

ONE_PROCESS = World(0, 1, 0, 1, torch.device("cpu"))


def test_updates_are_those_of_lars():
    """Three steps by hand: a matrix's gradient is scaled to 0.001 of its length, a bias's is not."""
    head = nn.Linear(3, 2).double()
    matrix, bias = head.weight.tolist(), head.bias.tolist()
    momentum = [[0.0] * 3 for _ in range(2)], [0.0] * 2
    optimizer = lars(head, momentum=0.9)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        head.weight.grad = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        head.bias.grad = torch.randn(2, generator=generator, dtype=torch.float64)
        rate = 0.5 + step
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate
        length = math.sqrt(sum(w * w for row in matrix for w in row))
        slope = math.sqrt(sum(g * g for row in head.weight.grad.tolist() for g in row))
        for i in range(2):
            for j in range(3):
                adapted = 0.001 * length / slope * head.weight.grad[i, j].item()
                momentum[0][i][j] = 0.9 * momentum[0][i][j] + adapted
                matrix[i][j] -= rate * momentum[0][i][j]
            momentum[1][i] = 0.9 * momentum[1][i] + head.bias.grad[i].item()
            bias[i] -= rate * momentum[1][i]
        optimizer.step()
        # timm adds 1e-8 to the length of the gradient.
        torch.testing.assert_close(
            head.weight.data, torch.tensor(matrix, dtype=torch.float64), rtol=1e-7, atol=0
        )
        torch.testing.assert_close(
            head.bias.data, torch.tensor(bias, dtype=torch.float64), rtol=1e-12, atol=0
        )


def test_learning_rate_follows_the_paper():
    """Table 11 over 7 steps per epoch, with a layer's own scale."""
    recipe = LarsRecipe()
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:], "lr_scale": 0.25}])
    peak = peak_learning_rate(recipe.base_lr, recipe.passes)
    assert peak == 0.01 * 16_384 / 256
    schedule = CosineSchedule(optimizer, peak, 90 * 7, recipe.warmup)
    for step in range(90 * 7):
        epoch = step / 7
        down = 0.5 * (1 + math.cos(math.pi * (epoch - 10) / 80))
        rate = peak * (epoch / 10 if epoch < 10 else down)
        schedule.set_step(step)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(
            [rate, 0.25 * rate], abs=1e-12
        )


def test_fresh_head_normalises_and_has_small_weights():
    head = lars_head(64, 5, seed=3)
    norm, linear = head
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(linear, nn.Linear)
    assert (norm.affine, norm.eps) == (False, 1e-6)
    assert linear.bias.abs().max() == 0
    assert linear.weight.std().item() == pytest.approx(0.01, rel=0.1)
    features = torch.randn(32, 64) * 7 + 3
    spread = features.var(dim=0, unbiased=False)
    wanted = (features - features.mean(dim=0)) / (spread + 1e-6).sqrt() @ linear.weight.T
    torch.testing.assert_close(head(features), wanted, rtol=0, atol=1e-6)
    again = dict(lars_head(64, 5, seed=3).named_parameters())
    assert torch.equal(again["1.weight"], linear.weight)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported_model(tmp_path_factory.mktemp("lars") / "model")


@pytest.fixture(scope="module")
def sets(model):
    """64 training and 24 test images."""
    train = labelled_tar(model.parent / "train.tar", 4, 16)
    return train, labelled_tar(model.parent / "test.tar", 4, 6, first=16)


def test_training_uses_views_and_does_not_change_the_tower(model, sets):
    """Its updates are those of a direct loop over the same views in whole batches."""
    trained = load_model(model, ONE_PROCESS).model
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    features = ImageFeatures(trained, "pooled")
    train = labelled_images(sets[0])
    # One update moves a matrix by rate x 0.001 of its length: a rate for so few of them.
    recipe = LarsRecipe(Passes(epochs=3, batch_size=32, micro_batch=16), base_lr=80.0)
    views = AugmentedBatches(train, recipe.passes, 32, ONE_PROCESS, workers=0)
    head = train_lars_head(features, views, 4, recipe, ONE_PROCESS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trained.parameters())

    direct = lars_head(features.width, 4, 0)
    optimizer = lars(direct, 0.9)
    schedule = CosineSchedule(optimizer, 10.0, 6, 10 / 90)
    for step, batch in enumerate(views.pieces()):
        images, labels = (torch.cat(part) for part in zip(*batch, strict=True))
        schedule.set_step(step)
        with torch.no_grad():
            seen = trained.visual.pooled(trained.visual.tokens(images))
        optimizer.zero_grad()
        nn.functional.cross_entropy(direct(seen), labels).backward()
        optimizer.step()
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(tensor, direct.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_divergence_is_reported():
    log = EpochLog(Passes(2, 8), 2, ONE_PROCESS)
    log.add(0, torch.tensor(1.0))
    with pytest.raises(UserError, match="the loss is nan in epoch 1: it diverged; give a smaller --base-lr"):
        log.add(1, torch.tensor(torch.nan))
