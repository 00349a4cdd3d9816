"""Captions without what is behind their ends: the same features and gradients, from fewer tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from flipscale.config import Phase
from flipscale.interop.openclip_export import export_openclip
from flipscale.models.flip import FLIP, build_model
from flipscale.models.inputs import Inputs
from flipscale.models.packing import Packing, is_packable, row_length
from flipscale.models.presets import preset
from flipscale.third_party import import_open_clip

LENGTH = 77
END = 99  # the largest id of the small vocabulary


def captions(lengths: Sequence[int], padding: int = 0) -> Tensor:
    """Return captions that end, with the largest id, after so many tokens."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, END, (len(lengths), LENGTH), generator=generator)
    for row, length in zip(texts, lengths, strict=True):
        row[length - 1] = END
        row[length:] = padding
    return texts


def small_clip() -> FLIP:
    return build_model(preset("clip_micro_p8", vocab_size=END + 1))


LENGTHS = (
    (LENGTH, LENGTH, LENGTH),  # nothing to leave out
    (1, 1, 1, 1),
    (2, LENGTH, 9, 31, 3),
    (7, 12, 25, 18, 30, 11, 22, 9, 40, 16),
)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_features_and_gradients_are_those_of_whole_captions(lengths: tuple[int, ...]) -> None:
    model = small_clip().double()
    texts = captions(lengths)
    towards = torch.randn(len(lengths), 64, dtype=torch.float64)
    parameters = {name: p for name, p in model.named_parameters() if not name.startswith(("visual", "logit"))}

    results = []
    for known in (None, lengths):
        features = model(Inputs(texts=texts, lengths=known)).texts
        results.append((features, torch.autograd.grad((features * towards).sum(), list(parameters.values()))))
    (whole, expected), (packed, gradients) = results
    assert (packed - whole).abs().max() <= 1e-14
    for name, right, ours in zip(parameters, expected, gradients, strict=True):
        assert (ours - right).abs().max() <= 1e-13 * (1 + right.abs().max()), name


def test_single_precision_is_within_its_rounding() -> None:
    model = small_clip()
    texts = captions(LENGTHS[-1])
    whole = model(Inputs(texts=texts)).texts
    packed = model(Inputs(texts=texts, lengths=LENGTHS[-1])).texts
    assert (packed - whole).abs().max() <= 1e-6


def test_what_is_behind_the_end_is_not_looked_at() -> None:
    model = small_clip()
    first, second = (
        model(Inputs(texts=captions(LENGTHS[-1], padding), lengths=LENGTHS[-1])).texts for padding in (0, 50)
    )
    assert torch.equal(first, second)


def test_stock_openclip_agrees(tmp_path: Path) -> None:
    model = small_clip()
    export_openclip(model, model.spec, tmp_path)
    stock = import_open_clip().create_model(f"local-dir:{tmp_path}").eval()

    texts = captions(LENGTHS[-1])
    theirs = stock.encode_text(texts, normalize=True)
    assert (model(Inputs(texts=texts, lengths=LENGTHS[-1])).texts - theirs).abs().max() <= 1e-5


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9))
def test_packing_holds_each_token_once_and_in_order(lengths: list[int]) -> None:
    texts = torch.zeros(len(lengths), 12, dtype=torch.int64)
    for row, length in zip(texts, lengths, strict=True):
        row[length - 1] = 1
    packing = Packing.of(texts, lengths)

    kept = [caption * 12 + slot for caption, length in enumerate(lengths) for slot in range(length)]
    assert packing.slots[: len(kept)].tolist() == kept
    assert set(packing.slots[len(kept) :].tolist()) <= {len(lengths) * 12}
    assert len(packing.slots) == row_length(sum(lengths), len(lengths), 12)
    assert texts.flatten()[packing.slots[packing.ends]].tolist() == [1] * len(lengths)

    # There and back.
    row = torch.arange(1.0, len(packing.slots) + 1)[:, None]
    padded = packing.padded(row)
    assert padded.shape == (len(lengths), 12, 1)
    assert torch.count_nonzero(padded) == len(kept)
    assert torch.equal(packing.packed(padded)[: len(kept)], row[: len(kept)])


@pytest.mark.parametrize("number", [1, 3, 16, 256, 4096])
def test_rows_have_few_lengths(number: int) -> None:
    cells = number * LENGTH
    found = [row_length(tokens, number, LENGTH) for tokens in range(number, cells + 1)]
    assert found == sorted(found)
    assert found[-1] == cells
    assert all(row >= tokens for row, tokens in zip(found, range(number, cells + 1), strict=True))
    lengths = sorted(set(found))
    assert len(lengths) <= 33
    assert max(after - before for before, after in pairwise(lengths)) <= max(8, cells / 32 + 8)


def test_only_causal_towers_without_masked_tokens_are_packed() -> None:
    clip, flip = preset("clip_micro_p8"), preset("vit_micro_p8")
    assert is_packable(clip.text, 0.0)
    assert not is_packable(clip.text, 0.5)
    assert not is_packable(flip.text, 0.0)

    pairs = Inputs(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), captions((5, 9)), lengths=(5, 9))
    for spec, text_mask_ratio, expected in ((clip, 0.0, (5, 9)), (clip, 0.5, None), (flip, 0.0, None)):
        phase = Phase.model_validate(
            {
                "name": "p",
                "samples": 8,
                "batch_size": 8,
                "base_lr": 1e-3,
                "mask_ratio": 0.5,
                "text_mask_ratio": text_mask_ratio,
            }
        )
        masked = pairs.masked(torch.arange(2), phase, spec, padding_id=0, seed=0)
        assert masked.lengths == expected


def test_parts_of_a_batch_have_their_own_lengths() -> None:
    pairs = Inputs(texts=captions((5, 9, 3)), lengths=(5, 9, 3))
    assert [part.lengths for part in pairs.split(2)] == [(5, 9), (3,)]
    assert [part.size for part in pairs.split(2)] == [2, 1]
