"""Masked inference and ensembles of views, against features computed per image and per view."""

import numpy as np
import pytest
import torch
from support.evaluation_samples import encoded, noise
from torch.nn import functional

from flipscale.data.order.lanes import hash64
from flipscale.distributed.world import World
from flipscale.errors import UserError
from flipscale.evaluation.decoding import Decoding, Reader, square_view
from flipscale.evaluation.features import Encoder
from flipscale.evaluation.labels import label_of
from flipscale.evaluation.masked_views import MaskedEncoder
from flipscale.evaluation.samples import RawSample
from flipscale.models.flip import FLIP, build_model
from flipscale.models.presets import preset

PATCHES = 16
BROKEN = 2  # the place of an image that cannot be decoded


@pytest.fixture(scope="module")
def model() -> FLIP:
    model = build_model(preset("vit_micro_p8", vocab_size=100, context_length=8), seed=3)
    assert model.spec.vision.patches == PATCHES
    return model


def samples() -> list[RawSample]:
    pictures = [encoded(noise(n)) for n in range(7)]
    pictures[BROKEN] = b"broken"
    return [RawSample(str(n), data, b"0") for n, data in enumerate(pictures)]


def features(model: FLIP, words, views: MaskedEncoder | None, batch_size: int = 3) -> torch.Tensor:
    encoder = Encoder(model, words, 32, World(0, 1, 0, 1, torch.device("cpu")), views)
    reader = Reader(samples(), label_of(1), Decoding(32, batch_size))
    encoded, _, skipped = encoder.images(reader, lambda read: None)
    assert skipped.count == 1
    return encoded


def order(place: int, seed: int) -> list[int]:
    """The patches by the loader's own hash of (seed, place, patch), smallest first."""
    noise_of = [int(hash64(seed, place, patch)) for patch in range(PATCHES)]
    return sorted(range(PATCHES), key=lambda patch: noise_of[patch])


def seen(model: FLIP, place: int, patches: list[int]) -> torch.Tensor:
    from PIL import Image

    pixels = np.array(square_view(Image.fromarray(noise(place)), 32)).transpose(2, 0, 1)
    with torch.no_grad():
        return model.encode_image(torch.from_numpy(pixels)[None], torch.tensor([sorted(patches)]))[0]


@pytest.mark.parametrize("ratio", [0.5, 0.75])
@pytest.mark.parametrize("seed", [0, 11])
def test_single_view_hides_the_patches_of_its_seed_and_place(model, words, ratio, seed):
    """The unusable image keeps its place: a mask does not depend on what others decode to."""
    kept = round(PATCHES * (1 - ratio))
    expected = [seen(model, place, order(place, seed)[:kept]) for place in range(7) if place != BROKEN]
    encoded = features(model, words, MaskedEncoder(model.encode_image, ratio, PATCHES, seed=seed))
    torch.testing.assert_close(encoded, torch.stack(expected), rtol=0, atol=2e-6)


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_ensemble_is_the_normalised_mean_of_views_that_show_everything(model, words, ratio):
    kept = round(PATCHES * (1 - ratio))
    expected = []
    for place in range(7):
        if place == BROKEN:
            continue
        patches = order(place, 5)
        views = [patches[start : start + kept] for start in range(0, PATCHES, kept)]
        assert sorted(patch for view in views for patch in view) == list(range(PATCHES))
        mean = sum(seen(model, place, view) for view in views) / len(views)
        expected.append(functional.normalize(torch.as_tensor(mean), dim=0))
    encoded = features(model, words, MaskedEncoder(model.encode_image, ratio, PATCHES, ensemble=True, seed=5))
    torch.testing.assert_close(encoded, torch.stack(expected), rtol=0, atol=2e-6)


def test_nothing_hidden_equals_the_plain_evaluation_in_all_batch_sizes(model, words):
    plain = features(model, words, None)
    assert torch.equal(features(model, words, MaskedEncoder(model.encode_image, 0.0, PATCHES)), plain)
    masked = MaskedEncoder(model.encode_image, 0.5, PATCHES)
    one, other = (features(model, words, masked, batch_size) for batch_size in (1, 7))
    torch.testing.assert_close(one, other, rtol=0, atol=2e-6)
    assert not torch.allclose(one, plain, atol=1e-4)


@pytest.mark.parametrize("ratio", [1.0, -0.1])
def test_ratio_outside_its_range_is_refused(model, ratio):
    with pytest.raises(UserError, match="outside"):
        MaskedEncoder(model.encode_image, ratio, PATCHES)
