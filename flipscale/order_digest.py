"""The order digest: one 64-bit number that says which sample was read at which position."""

from __future__ import annotations

from dataclasses import dataclass

_MODULUS = 1 << 64
_SIGN = 1 << 63


@dataclass(frozen=True, slots=True)
class OrderDigest:
    """The order digest of a set of (position, sample) pairs.

    It is the sum of a 64-bit hash of every pair, modulo 2**64 (see `flipscale.data.order.lanes.digest`). The
    sum does not depend on how the pairs are split into batches, ranks, workers and segments.
    `sum(digests, OrderDigest())` adds the digests of disjoint sets.

    Args:
        value: Any integer. It is reduced modulo 2**64, so that signed 64-bit integers are accepted as well.
    """

    value: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.value % _MODULUS)

    def __add__(self, other: OrderDigest) -> OrderDigest:
        """Return the digest of two disjoint sets of pairs together."""
        return OrderDigest(self.value + other.value)

    def hex(self) -> str:
        """Return the digest as files and terminals show it: 16 hexadecimal digits."""
        return format(self.value, "016x")

    def as_int64(self) -> int:
        """Return the same 64 bits as a signed integer, in which form collectives sum them."""
        return (self.value + _SIGN) % _MODULUS - _SIGN
