"""The section of a comparison with validation images and their nearest captions by each model."""

from __future__ import annotations

import torch

from flipscale.models.masking import visible_patches
from flipscale.reporting.comparison.results import Comparison
from flipscale.reporting.page.blocks import Card, CardLine, Gallery, Note, Picture, Section
from flipscale.reporting.page.pictures import Pixels, encode_picture, hide_patches

_MOST_MASKS = 2  # masked pictures of an example


def example_section(comparison: Comparison) -> Section:
    """Show validation images with their nearest captions, or the reason why there are none."""
    if isinstance(comparison.examples, str):
        reason = f"No examples can be shown: {comparison.examples}."
        return Section("Examples", [Note(reason, missing=True)])

    cards: list[Card] = []
    for place, example in enumerate(comparison.examples):
        whole = encode_picture(example.pixels, "whole")
        masked = _masked_pictures(comparison, example.pixels, place)
        title = " / ".join(example.captions[:2])
        cards.append(Card([whole, *masked], title, _caption_lines(comparison, place)))

    note = Note(
        "Validation images, the nearest captions by each model (cosine similarity, an image's own captions "
        "green), and the image under a mask as each run trained with. Evaluation itself shows whole images."
    )
    return Section("Examples", [note, Gallery(cards)])


def _caption_lines(comparison: Comparison, place: int) -> list[CardLine]:
    """Return the nearest captions of one image by each model."""
    lines: list[CardLine] = []
    for result in comparison.results:
        if place >= len(result.nearest):
            continue
        ranked = result.nearest[place]
        heading = f"{result.model.label}: own caption ranks {ranked.rank} of {ranked.pool}"
        lines.append(CardLine(heading, "strong"))
        lines += [
            CardLine(f"{near.similarity:.2f}  {near.caption}", "good" if near.own else "")
            for near in ranked.nearest
        ]
    return lines


def _masked_pictures(comparison: Comparison, pixels: Pixels, place: int) -> list[Picture]:
    """Return the image under the strongest mask of each run's job; equal masks are shown once."""
    drawn: dict[tuple[int, float, int], Picture] = {}
    for result in comparison.results:
        job = result.model.job
        spec = result.model.spec
        if job is None or spec is None:
            continue

        ratio = max((phase.mask_ratio for phase in job.phases), default=0.0)
        key = (spec.vision.grid, ratio, job.seed)
        if ratio == 0.0 or key in drawn:
            continue

        keep = visible_patches(torch.tensor([place]), spec.vision.patches, ratio, job.seed)
        if keep is not None:
            visible = [int(patch) for patch in keep[0]]
            hidden = hide_patches(pixels, visible, spec.vision.grid)
            drawn[key] = encode_picture(hidden, f"{ratio:.0%} hidden ({result.model.label})")

    return list(drawn.values())[:_MOST_MASKS]
