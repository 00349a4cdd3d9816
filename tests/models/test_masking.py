import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flipscale.data.order import lanes
from flipscale.errors import UserError
from flipscale.models.masking import complementary_views, hash64, visible_count, visible_patches

WORD = 1 << 64


def slow_hash64(*words: int) -> int:
    """Hash with the chained splitmix64 finaliser in Python's unbounded integers."""
    state = 0
    for word in words:
        z = ((state ^ (word % WORD)) + 0x9E3779B97F4A7C15) % WORD
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
        state = z ^ (z >> 31)
    return state


@settings(deadline=None)
@given(
    seed=st.integers(-(1 << 63), (1 << 63) - 1),
    words=st.lists(
        st.tuples(st.integers(0, (1 << 63) - 1), st.integers(0, 4096)), min_size=1, max_size=5, unique=True
    ),
)
def test_the_hash_has_the_same_bits_in_torch_numpy_and_python(
    seed: int, words: list[tuple[int, int]]
) -> None:
    positions, patches = torch.tensor(words).unbind(dim=1)
    ours = hash64(seed, positions, patches).numpy().view(np.uint64)
    assert ours.tolist() == [slow_hash64(seed, position, patch) for position, patch in words]
    assert np.array_equal(ours, lanes.hash64(seed, positions.numpy(), patches.numpy()))


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"),
    [(196, 0.5, 98), (196, 0.75, 49), (256, 0.5, 128), (256, 0.75, 64), (196, 0.0, 196), (100, 0.9, 10)],
)
def test_kept_patches_are_counted_as_in_the_paper(patches: int, ratio: float, kept: int) -> None:
    assert visible_count(patches, ratio) == kept


def test_at_least_one_patch_stays() -> None:
    assert visible_count(4, 0.99) == 1


@pytest.mark.parametrize("ratio", [-0.1, 1.0, float("nan")])
def test_ratio_outside_its_range_is_refused(ratio: float) -> None:
    with pytest.raises(UserError, match="outside"):
        visible_count(196, ratio)


@pytest.mark.parametrize("ratio", [0.5, 0.75, 0.9])
def test_the_patches_of_least_noise_are_visible(ratio: float) -> None:
    positions = torch.tensor([0, 1, 2, 12_800_000_000, (1 << 62) + 5])
    visible = visible_patches(positions, 49, ratio, seed=7)
    assert visible is not None
    for position, ids in zip(positions.tolist(), visible.tolist(), strict=True):
        by_noise = sorted(range(49), key=lambda patch: slow_hash64(7, position, patch))
        assert ids == sorted(by_noise[: visible_count(49, ratio)])


def test_mask_depends_only_on_its_position() -> None:
    positions = torch.arange(64)
    whole = visible_patches(positions, 196, 0.5, seed=1)
    again = visible_patches(positions.flip(0)[:20], 196, 0.5, seed=1)
    other_seed = visible_patches(positions, 196, 0.5, seed=2)
    assert whole is not None
    assert again is not None
    assert other_seed is not None
    assert torch.equal(again, whole.flip(0)[:20])
    assert len(torch.unique(whole, dim=0)) == 64
    assert not torch.equal(whole, other_seed)


def test_hiding_nothing_gives_no_mask() -> None:
    assert visible_patches(torch.arange(4), 196, 0.0, seed=0) is None


def test_every_patch_is_seen_equally_often() -> None:
    samples = 20_000
    visible = visible_patches(torch.arange(samples), 64, 0.75, seed=3)
    assert visible is not None
    frequency = torch.bincount(visible.flatten(), minlength=64) / samples
    deviation = (0.25 * 0.75 / samples) ** 0.5
    assert (frequency - 0.25).abs().max() < 4.5 * deviation  # one seed in 2,000 would fail by chance


@pytest.mark.parametrize(
    ("patches", "ratio", "views"),
    [(196, 0.5, 2), (196, 0.75, 4), (256, 0.75, 4), (49, 0.5, 3), (16, 0.6, 3), (16, 0.9, 16), (16, 0.0, 1)],
)
def test_complementary_views_show_every_patch(patches: int, ratio: float, views: int) -> None:
    positions = torch.tensor([0, 5, 12_800_000_000])
    kept = visible_count(patches, ratio)
    ids = complementary_views(positions, patches, ratio, seed=7)
    assert ids.shape == (3, views, kept)
    for position, sample in zip(positions.tolist(), ids.tolist(), strict=True):
        by_noise = sorted(range(patches), key=lambda patch: slow_hash64(7, position, patch))
        expected = []
        while len(expected) * kept < patches:
            begin = len(expected) * kept
            view = by_noise[begin : begin + kept]
            expected.append(sorted(view + by_noise[: kept - len(view)]))
        assert sample == expected
        assert {patch for view in sample for patch in view} == set(range(patches))
        assert views * kept != patches or sorted(patch for view in sample for patch in view) == list(
            range(patches)
        )


def test_the_first_view_is_the_training_mask_of_its_position() -> None:
    positions = torch.arange(8)
    drawn = visible_patches(positions, 49, 0.5, seed=2)
    assert drawn is not None
    assert torch.equal(complementary_views(positions, 49, 0.5, seed=2)[:, 0], drawn)
