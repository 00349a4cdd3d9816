"""Features of a set: gradient-free, in fp32, the model left as it was, nothing that is not finite."""

import pytest
import torch
from evaluation_samples import noise

from flipscale.errors import UserError
from flipscale.evaluation.features import encode_images, encode_texts


def images(count: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(noise(n)).permute(2, 0, 1) for n in range(count)])


def test_image_features_are_those_of_the_whole_set(stock):
    pixels = images(7)
    features = encode_images(stock, pixels.split(3))
    assert features.shape == (7, 32)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, stock.encode_image(pixels).detach(), rtol=0, atol=1e-6)


def test_text_features_follow_the_captions_with_repeats(stock, bpe):
    captions = ["a cat", "a dog", "a cat", "two dogs", "a dog"]
    features = encode_texts(stock, bpe, captions, batch_size=2)
    torch.testing.assert_close(features, stock.encode_text(bpe(captions)).detach(), rtol=0, atol=1e-6)
    assert torch.equal(features[0], features[2])
    assert torch.equal(features[1], features[4])


class Dropping(torch.nn.Module):
    """Gives NaN in training mode and low precision under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 4)

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        features = self.layer(images.float().mean(dim=(2, 3)))
        return features * torch.nan if self.training else features

    def encode_text(self, texts: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_evaluation_and_is_put_back(training):
    model = Dropping().train(training)
    with torch.autocast("cpu", torch.bfloat16):
        features = encode_images(model, [images(2)])
    assert torch.equal(features, encode_images(model, [images(2)]))
    assert model.training is training


def test_the_mode_is_put_back_after_an_error():
    model = Dropping().train()
    with pytest.raises(NotImplementedError):
        encode_texts(model, lambda captions: torch.zeros(len(captions), 4), ["a"])  # pyright: ignore
    assert model.training


def test_features_that_are_not_finite_are_refused(colour_model, words):
    with torch.no_grad():
        colour_model.table[1, 2] = torch.nan
    pixels = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    pixels[:2, 1] = 255
    with pytest.raises(UserError, match="2 of 5 image features are NaN or infinite"):
        encode_images(colour_model, pixels.split(4))
    with torch.no_grad():
        colour_model.table[1, 2] = torch.inf
    with pytest.raises(UserError, match="text features are NaN or infinite"):
        encode_texts(colour_model, words, ["red", "green"])
