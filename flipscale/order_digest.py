"""Two 64-bit numbers: which sample was read at which position, and with which content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

_MODULUS = 1 << 64
_SIGN = 1 << 63
Digest = TypeVar("Digest", bound="SummedDigest")


@dataclass(frozen=True, slots=True)
class SummedDigest:
    """The digest of a set of facts: the sum of a 64-bit hash of every fact, modulo 2**64.

    The sum does not depend on how the facts are split into batches, ranks, workers and segments. The built-in
    `sum`, with an empty digest to start from, adds the digests of disjoint sets.

    Args:
        value: Any integer. It is reduced modulo 2**64, so that signed 64-bit integers are accepted as well.
    """

    value: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.value % _MODULUS)

    def __add__(self: Digest, other: Digest) -> Digest:
        """Return the digest of two disjoint sets together."""
        return type(self)(self.value + other.value)

    def hex(self) -> str:
        """Return the digest as files and terminals show it: 16 hexadecimal digits."""
        return format(self.value, "016x")

    def as_int64(self) -> int:
        """Return the same 64 bits as a signed integer, in which form collectives sum them."""
        return (self.value + _SIGN) % _MODULUS - _SIGN


@dataclass(frozen=True, slots=True)
class OrderDigest(SummedDigest):
    """The digest of (position, sample) pairs; see `flipscale.data.order.lanes.digest`."""


@dataclass(frozen=True, slots=True)
class ContentDigest(SummedDigest):
    """The digest of (position, content) pairs; see `flipscale.data.order.lanes.content_digest`."""
