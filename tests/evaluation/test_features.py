"""Features of a set: without gradients, in fp32, once per sample, and always finite."""

import pytest
import torch
from support.evaluation_samples import encoded, encoder_of, noise

from flipscale.errors import UserError
from flipscale.evaluation.decoding import Decoding, Reader
from flipscale.evaluation.labels import label_of
from flipscale.evaluation.samples import RawSample


def reader(count: int, batch_size: int, image_size: int = 32) -> Reader[int]:
    samples = [RawSample(str(n), encoded(noise(n)), b"0") for n in range(count)]
    return Reader(samples, label_of(1), Decoding(image_size, batch_size))


def images(count: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(noise(n)).permute(2, 0, 1) for n in range(count)])


def ignore(read: int) -> None:
    pass


def test_image_features_are_those_of_the_whole_set(stock, bpe):
    features, targets, skipped = encoder_of(stock, bpe, 32).images(reader(7, 3), ignore)
    assert features.shape == (7, 32)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert (targets, skipped.count) == ([0] * 7, 0)
    torch.testing.assert_close(features, stock.encode_image(images(7)).detach(), rtol=0, atol=1e-6)


def test_text_features_follow_the_captions_with_repeats(stock, bpe):
    captions = ["a cat", "a dog", "a cat", "two dogs", *(f"{n} dogs" for n in range(300)), "a dog"]
    features = encoder_of(stock, bpe, 32).texts(captions)
    torch.testing.assert_close(features, stock.encode_text(bpe(captions)).detach(), rtol=0, atol=1e-6)
    assert torch.equal(features[0], features[2])
    assert torch.equal(features[1], features[-1])


def test_surrounding_autocast_does_not_change_features(stock, bpe):
    with torch.autocast("cpu", torch.bfloat16):
        features, _, _ = encoder_of(stock, bpe, 32).images(reader(2, 2), ignore)
    assert torch.equal(features, encoder_of(stock, bpe, 32).images(reader(2, 2), ignore)[0])


def test_infinite_features_are_refused(colour_model, words):
    with torch.no_grad():
        colour_model.table[1, 2] = torch.nan
    green = (images(32).float().mean(dim=(2, 3)).argmax(dim=1) == 1).sum()
    assert 0 < green < 32
    with pytest.raises(UserError, match=f"{green} of 32 image features are NaN or infinite"):
        encoder_of(colour_model, words, 32).images(reader(32, 5), ignore)
    with torch.no_grad():
        colour_model.table[1, 2] = torch.inf
    with pytest.raises(UserError, match="text features are NaN or infinite"):
        encoder_of(colour_model, words).texts(["red", "green"])
