"""OrderDigest: the arithmetic, and the forms in which digests are stored and exchanged."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flipscale.order_digest import OrderDigest

WORDS = st.integers(0, 2**64 - 1)


@given(st.lists(WORDS, max_size=8))
def test_sum_is_modulo_2_to_the_64(words: list[int]):
    assert sum(map(OrderDigest, words), OrderDigest()) == OrderDigest(sum(words) % 2**64)


@given(st.lists(WORDS, min_size=1, max_size=8), st.randoms())
def test_sum_does_not_depend_on_order_or_grouping(words: list[int], random):
    total = sum(map(OrderDigest, words), OrderDigest())
    random.shuffle(words)
    cut = random.randrange(len(words) + 1)
    parts = [sum(map(OrderDigest, part), OrderDigest()) for part in (words[:cut], words[cut:])]
    assert parts[0] + parts[1] == total


@pytest.mark.parametrize(
    ("value", "digits"),
    [
        (0, "0" * 16),
        (0xAB, "00000000000000ab"),
        (2**64 - 1, "f" * 16),
        (-1, "f" * 16),
        (2**64 + 1, "0" * 15 + "1"),
    ],
)
def test_hex_has_16_digits(value: int, digits: str):
    assert OrderDigest(value).hex() == digits


@pytest.mark.parametrize(
    ("value", "signed"), [(0, 0), (1, 1), (2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1)]
)
def test_as_int64_keeps_the_bits(value: int, signed: int):
    assert OrderDigest(value).as_int64() == signed
    assert OrderDigest(signed) == OrderDigest(value)


@given(st.lists(WORDS, min_size=1, max_size=8))
def test_int64_tensors_sum_to_the_same_digest(words: list[int]):
    """The training step sums digests as int64, which wraps around."""
    folded = torch.tensor([OrderDigest(word).as_int64() for word in words], dtype=torch.int64)
    assert OrderDigest(int(folded.sum())) == sum(map(OrderDigest, words), OrderDigest())


def test_digest_is_a_value():
    digest = OrderDigest(7)
    assert pickle.loads(pickle.dumps(digest)) == digest
    assert len({digest, OrderDigest(7 + 2**64), OrderDigest(8)}) == 2
    with pytest.raises(AttributeError):
        digest.value = 8  # pyrefly: ignore[read-only]: the test shows that it is
