"""The samples of evaluation sets, before they are decoded, and the account of those that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from flipscale.data.quarantine import BadSample
from flipscale.data.shards.tar import check_size
from flipscale.data.text.caption import decode_captions
from flipscale.errors import UserError

MAX_IMAGE_PIXELS = 100_000_000
"""Larger images are skipped before they are decoded."""

_EXAMPLES = 20  # skipped samples that are named


@dataclass(frozen=True)
class ShardMember:
    """The place of an image in a shard.

    It is read late, so that a process reads only the images of its own batches.
    """

    shard: str
    offset: int
    """Bytes."""
    size: int
    """Bytes."""

    def read_bytes(self) -> bytes:
        """Return the content.

        Raises:
            BadSample: If it is too large for an image.
            UserError: If the shard cannot be read up to the end of the member.
        """
        check_size("image", self.size)
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise incomplete_shard(self.shard, error) from error

        if len(data) < self.size:
            raise incomplete_shard(self.shard, "unexpected end of data")
        return data


def incomplete_shard(shard: str, reason: object) -> UserError:
    """Return the error for a shard that is damaged or cut short."""
    return UserError(f"the evaluation shard {shard} cannot be read whole ({reason}); restore it")


@dataclass(frozen=True)
class RawSample:
    """One undecoded sample; a field is None if the set has no such member for it."""

    name: str
    image: bytes | Path | ShardMember | None
    label: bytes | None = None
    """Content of a .cls file."""
    caption: bytes | None = None
    """Content of a .txt file."""
    label_vector: bytes | None = None
    """Content of a .npy file."""


def image_bytes(sample: RawSample) -> bytes:
    """Return the bytes of the image file, empty if the image is missing.

    Raises:
        BadSample: If the file cannot be read.
        UserError: If the shard of the image is damaged.
    """
    try:
        image = sample.image
        data = image.read_bytes() if isinstance(image, (Path, ShardMember)) else image
    except OSError as error:
        raise BadSample(f"the image cannot be read ({error.strerror})") from None
    except ValueError:
        raise BadSample("the image cannot be read (its name has a NUL)") from None
    return data or b""


def captions_of(sample: RawSample) -> list[str]:
    """Return the captions of a sample: one per line of its .txt, as CLIP_benchmark writes sets with several.

    Raises:
        BadSample: If the text cannot be decoded.
    """
    return decode_captions(sample.caption or b"")


@dataclass
class Skipped:
    """The samples that could not be used: their number, and the reasons for the first few."""

    count: int = 0
    first: dict[int, str] = field(default_factory=dict[int, str])
    """Name and reason, by the place of the sample in the set."""

    def add(self, place: int, name: str, reason: str) -> None:
        """Count one sample."""
        self.count += 1
        if len(self.first) < _EXAMPLES:
            self.first[place] = f"{name}: {reason}"

    @property
    def examples(self) -> list[str]:
        """The names of the first skipped samples, each with the reason."""
        return list(self.first.values())

    @classmethod
    def joined(cls, parts: Iterable[Skipped]) -> Skipped:
        """Return the account of all processes that read a set together."""
        parts = list(parts)
        first = sorted(item for part in parts for item in part.first.items())
        return cls(sum(part.count for part in parts), dict(first[:_EXAMPLES]))
