"""Masked captions against loops over samples and slots."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.reference_blocks import run_blocks
from torch import Tensor

from flipscale.data.order.lanes import hash64
from flipscale.models.flip import FLIP, build_model
from flipscale.models.masking import TextMask, visible_count, visible_patches, visible_tokens
from flipscale.models.presets import preset

PAD, END = 7, 99
LENGTHS = (1, 3, 8, 12, 16)  # tokens of each caption before its padding, of 16
POSITIONS = torch.tensor([0, 1, 17, 12_800_000_000, 5])
Pool = Literal["first", "argmax"]


def captions() -> Tensor:
    """Return (5, 16) ids. The last token of each is the largest; one caption has the padding's id inside."""
    tokens = torch.full((len(LENGTHS), 16), PAD)
    for row, length in zip(tokens, LENGTHS, strict=True):
        row[:length] = torch.arange(20, 20 + length)
        row[length - 1] = END
    tokens[3, 4] = PAD
    return tokens


def slow_tokens(
    tokens: Tensor, positions: Tensor, ratio: float, seed: int, kind: TextMask, pool: Pool
) -> list[list[int]]:
    """Return the slots sorted by their class, then by noise."""
    kept = []
    for ids, position in zip(tokens.tolist(), positions.tolist(), strict=True):
        real = len(ids)
        while real > 1 and ids[real - 1] == PAD:
            real -= 1
        pooled = 0 if pool == "first" else ids.index(max(ids))

        slots = np.arange(len(ids))
        noise = hash64(seed, np.full(len(ids), position), slots + 2**32) >> np.uint64(2)
        padding = (slots >= real) & (kind == "prioritised")
        ranks = sorted((slot != pooled, padding[slot], noise[slot], slot) for slot in range(len(ids)))
        slots = [rank[-1] for rank in ranks]
        kept.append(sorted(slots[: visible_count(len(ids), ratio)]))
    return kept


@pytest.mark.parametrize("pool", ["first", "argmax"])
@pytest.mark.parametrize("kind", ["random", "prioritised"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.95])
def test_the_slots_are_those_of_a_loop(ratio: float, kind: TextMask, pool: Pool) -> None:
    visible = visible_tokens(captions(), POSITIONS, ratio, 3, kind, pool, PAD)
    assert visible is not None
    assert visible.tolist() == slow_tokens(captions(), POSITIONS, ratio, 3, kind, pool)


def test_prioritised_hides_no_token_before_all_padding_is_hidden() -> None:
    tokens = captions().repeat(200, 1)
    positions = torch.arange(len(tokens))
    visible = visible_tokens(tokens, positions, 0.5, 0, "prioritised", "first", PAD)
    assert visible is not None
    for row, length in zip(visible.tolist(), LENGTHS * 200, strict=True):
        assert len(row) == 8
        if length <= 8:
            assert row[:length] == list(range(length))
        else:
            assert max(row) < length


@pytest.mark.parametrize("kind", ["random", "prioritised"])
@pytest.mark.parametrize("pool", ["first", "argmax"])
def test_the_pooled_slot_stays(kind: TextMask, pool: Pool) -> None:
    tokens = captions().repeat(100, 1)
    visible = visible_tokens(tokens, torch.arange(len(tokens)), 0.9, 0, kind, pool, PAD)
    assert visible is not None
    assert visible.shape == (500, 1)
    expected = tokens.argmax(dim=1) if pool == "argmax" else torch.zeros(500)
    assert torch.equal(visible[:, 0], expected.long())


def test_random_hides_every_other_slot_equally_often() -> None:
    samples = 20_000
    visible = visible_tokens(
        captions()[:1].expand(samples, -1), torch.arange(samples), 0.5, 3, "random", "first", PAD
    )
    assert visible is not None
    frequency = torch.bincount(visible.flatten(), minlength=16) / samples
    share = 7 / 15  # the first slot takes one of the 8 places
    deviation = (share * (1 - share) / samples) ** 0.5
    assert frequency[0] == 1.0
    assert (frequency[1:] - share).abs().max() < 4.5 * deviation


def test_mask_depends_on_its_position_and_differs_from_the_images_mask() -> None:
    positions = torch.arange(4000)
    tokens = captions()[-1:].expand(4000, -1)
    whole = visible_tokens(tokens, positions, 0.5, 1, "random", "first", PAD)
    again = visible_tokens(tokens[:20], positions.flip(0)[:20], 0.5, 1, "random", "first", PAD)
    patches = visible_patches(positions, 16, 0.5, seed=1)
    assert whole is not None
    assert again is not None
    assert patches is not None
    assert torch.equal(again, whole.flip(0)[:20])
    seen = [torch.zeros(4000, 16).scatter_(1, ids, 1.0)[:, 1:] for ids in (whole, patches)]
    together = (seen[0] * seen[1]).mean(dim=0)  # independent: 7/15 of 1/2
    deviation = (7 / 30 * 23 / 30 / 4000) ** 0.5
    assert (together - 7 / 30).abs().max() < 4.5 * deviation


def test_hiding_nothing_gives_no_mask() -> None:
    assert visible_tokens(captions(), POSITIONS, 0.0, 0, "random", "first", PAD) is None


def slow_text_feature(model: FLIP, ids: list[int], slots: list[int]) -> Tensor:
    """Return the feature of one caption, computed token by token from these slots."""
    spec = model.spec.text
    rows = [model.token_embedding.weight[ids[slot]] + model.positional_embedding[slot] for slot in slots]
    x = run_blocks(model.transformer, spec, torch.stack(rows)[None], causal=spec.causal)[0]
    read = [ids[slot] for slot in slots]
    pooled = x[0 if spec.pool == "first" else read.index(max(read))]
    norm = model.ln_final
    return F.layer_norm(pooled, (spec.width,), norm.weight, norm.bias, spec.norm_eps) @ model.text_projection


@pytest.mark.parametrize("name", ["vit_micro_p8", "clip_micro_p8"])
def test_the_tower_reads_the_kept_tokens_at_their_own_positions(name: str) -> None:
    model = build_model(preset(name, vocab_size=100, context_length=16), seed=2)
    pool = model.spec.text.pool
    keep = visible_tokens(captions(), POSITIONS, 0.5, 3, "random", pool, PAD)
    assert keep is not None
    with torch.no_grad():
        ours = model.text_features(captions(), keep)
        for row, ids, slots in zip(ours, captions().tolist(), keep.tolist(), strict=True):
            assert (row - slow_text_feature(model, ids, slots)).abs().max() <= 1e-5
        everything = torch.arange(16).expand(5, -1)
        assert torch.equal(model.text_features(captions(), everything), model.text_features(captions()))
        assert torch.equal(model.encode_text(captions(), keep), F.normalize(ours, dim=-1))


def test_hidden_tokens_do_not_matter() -> None:
    model = build_model(preset("vit_micro_p8", vocab_size=100, context_length=16))
    keep = visible_tokens(captions(), POSITIONS, 0.5, 3, "random", "first", PAD)
    assert keep is not None
    hidden = torch.ones(5, 16, dtype=torch.bool).scatter_(1, keep, False)
    changed = torch.where(hidden, 55, captions())
    assert torch.equal(model.encode_text(captions(), keep), model.encode_text(changed, keep))
