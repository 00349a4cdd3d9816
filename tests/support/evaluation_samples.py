"""Material of the evaluation tests: real images and tars, and models whose answers are known."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from flipscale.data.text.tokenizer import Tokenizer
from flipscale.distributed.world import World
from flipscale.evaluation.decoding import Decoding, Reader
from flipscale.evaluation.features import DualEncoder, Encoder
from flipscale.evaluation.labels import label_of
from flipscale.evaluation.samples import RawSample

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


def encoder_of(model: DualEncoder, tokenizer: Tokenizer, image_size: int = 16) -> Encoder:
    """The model in a single process."""
    return Encoder(model, tokenizer, image_size, World(0, 1, 0, 1, torch.device("cpu")))


def read_set(
    samples: Iterable[RawSample], target: Any = None, **options: Any
) -> tuple[torch.Tensor, list[Any], Reader[Any]]:
    """All images and all targets of a set, and the reader with the samples that it skipped."""
    reader = Reader(samples, target or label_of(10), Decoding(**{"image_size": 16, **options}))
    batches = list(reader.batches())
    images = torch.cat([batch.inputs for batch in batches]) if batches else torch.empty(0, 3, 16, 16)
    return images, [target for batch in batches for target in batch.targets], reader


def make_class_folders(root: Path, names: list[str]) -> Path:
    """A folder of class folders, each with one file."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "0.jpg").write_bytes(b"x")
    return root


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    """The image as the bytes of a file."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def swatch(colour: str, kind: str = "JPEG") -> bytes:
    return encoded(Image.new("RGB", (40, 32), COLOURS[colour]), kind)


def noise(seed: int, width: int = 32, height: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class ColourModel(torch.nn.Module):
    """Sees only which primary colour is strongest in an image, and which of three words a text holds."""

    words: torch.Tensor

    def __init__(self, word_ids: list[int]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.eye(3))
        self.register_buffer("words", torch.tensor(word_ids))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8
        return self.table[images.float().mean(dim=(2, 3)).argmax(dim=1)]

    def encode_text(self, texts: torch.Tensor) -> torch.Tensor:
        hits = (texts[:, :, None] == self.words).any(dim=1).float()
        return functional.normalize(hits @ self.table + 0.01, dim=1)


class StockModel(torch.nn.Module):
    """A stock open_clip model behind flipscale's interface."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, clip, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_image((images.float() / 255 - self.mean) / self.std, normalize=True)

    def encode_text(self, texts: torch.Tensor) -> torch.Tensor:
        return self.clip.encode_text(texts, normalize=True)


def npy(numbers: list[float]) -> bytes:
    """A .npy file of one float64 vector."""
    file = io.BytesIO()
    np.save(file, np.array(numbers))
    return file.getvalue()
