"""Views for training: once per image and epoch, the same on any number of processes, only usable images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.classifier_samples import labelled_tar, picture
from support.evaluation_samples import write_tar

from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.transfer.augmented_batches import AugmentedBatches
from flipscale.transfer.labelled_images import LabelledImages, labelled_images
from flipscale.transfer.passes import Passes

PASSES = Passes(epochs=2, batch_size=8, micro_batch=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> LabelledImages:
    """20 images of 5 classes."""
    return labelled_images(labelled_tar(tmp_path_factory.mktemp("views") / "a.tar", 5, 4))


def world(rank: int = 0, size: int = 1) -> World:
    return World(rank, size, 0, 1, torch.device("cpu"))


def batches(images, passes=PASSES, place=(0, 1), workers=0, epoch=0, change=None):
    """All batches of one process, each as (images, labels), and how many images its pieces had."""
    views = AugmentedBatches(images, passes, 16, world(*place), workers, change)
    for pieces in views.pieces(epoch):
        parts = list(pieces)
        yield torch.cat([i for i, _ in parts]), torch.cat([n for _, n in parts]), [len(n) for _, n in parts]


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours[:2], theirs[:2], strict=True))


def test_epoch_shows_each_image_once_in_batches_and_pieces(images):
    seen = list(batches(images, replace(PASSES, batch_size=10)))
    assert [sizes for *_, sizes in seen] == [[3, 3, 3, 1]] * 4
    pixels, labels, _ = seen[0]
    assert (pixels.dtype, pixels.shape, labels.dtype) == (torch.uint8, (10, 3, 16, 16), torch.int64)
    for epoch in (seen[:2], seen[2:]):
        assert torch.bincount(torch.cat([labels for _, labels, _ in epoch])).tolist() == [4] * 5
    # 20 images are two batches of 8; the other 4 wait for another epoch.
    assert len(list(batches(images))) == 4
    orders = [torch.cat([labels for _, labels, _ in epoch]).tolist() for epoch in (seen[:2], seen[2:])]
    assert orders[0] != orders[1]


def test_neither_processes_nor_workers_nor_an_interruption_change_a_view(images):
    single = list(batches(images))
    for number, shares in enumerate(
        zip(batches(images, place=(0, 2)), batches(images, place=(1, 2)), strict=True)
    ):
        first, second = shares
        together = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
        assert same(together, single[number])
    for other, rest in ((batches(images, workers=2), single), (batches(images, epoch=1), single[2:])):
        assert all(same(ours, theirs) for ours, theirs in zip(other, rest, strict=True))
    assert not same(next(batches(images, replace(PASSES, seed=1))), single[0])


def test_transform_draws_do_not_depend_on_earlier_draws(images):
    def brighter(image):
        return image.point(lambda value: min(255, value + np.random.randint(1, 100)))

    first = list(batches(images, change=brighter))
    np.random.seed(3)
    assert all(same(a, b) for a, b in zip(first, batches(images, change=brighter), strict=True))
    assert not same(first[0], next(batches(images)))


def test_unusable_image_is_replaced_by_the_next(tmp_path, caplog):
    members = [("0.png", b"broken"), ("0.cls", b"0"), ("1.png", picture(0, 1, 2)), ("1.cls", b"0")]
    members += [("2.png", picture(1, 2, 2)), ("2.cls", b"1"), ("3.png", picture(1, 3, 2))]
    labelled = labelled_images(str(write_tar(tmp_path / "a.tar", members)))
    ((_, labels, _),) = batches(labelled, Passes(1, 4))
    assert sorted(labels.tolist()) == [0, 0, 0, 1]
    assert "a.tar/0: not an image; the next image takes its place" in caplog.text
    assert "a.tar/3: the label is missing" in caplog.text
    write_tar(tmp_path / "b.tar", [(f"{n}.{kind}", b"%d" % n) for n in range(2) for kind in ("png", "cls")])
    with pytest.raises(UserError, match=r"b\.tar holds no usable image"):
        next(batches(labelled_images(str(tmp_path / "b.tar")), Passes(1, 2)))


@pytest.mark.parametrize("workers", [0, 1])
def test_set_that_disappears_is_reported(tmp_path, workers):
    labelled = labelled_images(labelled_tar(tmp_path / "a.tar", 2, 2))
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=r"^the evaluation shard .*a\.tar cannot be read whole"):
        next(batches(labelled, Passes(1, 2), workers=workers))


@pytest.mark.parametrize(
    ("passes", "processes", "multiple", "message"),
    [
        (
            Passes(1, 64),
            1,
            1,
            "has 20 images, fewer than a batch of 64; give .*, 20 at most",
        ),
        (Passes(1, 64), 3, 2, "a smaller --batch-size, 18 at most"),
        (
            Passes(1, 9),
            2,
            1,
            "a batch of 9 is not a multiple of 2; .* 2 processes can share in equal parts",
        ),
        (Passes(1, 10), 2, 2, "a batch of 10 is not a multiple of 4; .* that 2 processes can share in pairs"),
        (Passes(1, 8, micro_batch=3), 1, 2, "a micro-batch of 3 cannot be mixed in pairs"),
        (Passes(0, 8), 1, 1, "epochs and micro-batch must be 1 or more"),
        (Passes(1, 8, micro_batch=0), 1, 1, "epochs and micro-batch must be 1 or more"),
        (Passes(1, 1), 1, 1, "the batch 2 or more"),
    ],
)
def test_batches_that_cannot_be_shared_are_refused(passes, processes, multiple, message):
    with pytest.raises(UserError, match=message):
        passes.check(20, processes, multiple)
