"""The sections of a run with images: training samples under their masks, and retrieval examples."""

from __future__ import annotations

from flipscale.reporting.page.blocks import Card, CardLine, Gallery, Note, Section
from flipscale.reporting.page.pictures import encode_picture, hide_patches
from flipscale.reporting.run.facts import RunFacts
from flipscale.reporting.run.retrieval_examples import RetrievalExample
from flipscale.reporting.run.seen_samples import SeenSample


def seen_section(facts: RunFacts) -> Section:
    """Show training samples as the model saw them, or the reason why they cannot be shown."""
    title = "What the model saw"
    if isinstance(facts.seen_samples, str):
        reason = f"No training samples can be shown: {facts.seen_samples}."
        return Section(title, [Note(reason, missing=True)])

    note = Note(
        "Training samples at their places in the run's order, cropped as in training; hatched patches were "
        "hidden from the image encoder."
    )
    return Section(title, [note, Gallery([_seen_card(sample) for sample in facts.seen_samples])])


def _seen_card(sample: SeenSample) -> Card:
    if sample.visible is None:
        pictures = [encode_picture(sample.pixels, "whole")]
    else:
        hidden = hide_patches(sample.pixels, sample.visible, sample.grid)
        seen = f"seen: {len(sample.visible)} of {sample.grid**2} patches"
        pictures = [encode_picture(hidden, seen), encode_picture(sample.pixels, "whole view")]

    place = CardLine(f"phase {sample.phase}, position {sample.position:,}")
    return Card(pictures, sample.caption, [place])


def retrieval_section(facts: RunFacts) -> Section:
    """Show validation images with their nearest captions, or the reason why they cannot be shown."""
    title = "Retrieval examples"
    if isinstance(facts.retrieval_examples, str):
        reason = f"No retrieval examples can be shown: {facts.retrieval_examples}."
        return Section(title, [Note(reason, missing=True)])
    if not facts.retrieval_examples:
        return Section(title, [Note("The retrieval set has no usable sample.", missing=True)])

    pool = facts.retrieval_examples[0].nearest.pool
    note = Note(
        f"Validation images, and what the newest checkpoint puts nearest among {pool} captions (cosine "
        "similarity); an image's own captions are green."
    )
    cards = [_retrieval_card(retrieved) for retrieved in facts.retrieval_examples]
    return Section(title, [note, Gallery(cards)])


def _retrieval_card(retrieved: RetrievalExample) -> Card:
    example, ranked = retrieved
    label = f"own caption ranks {ranked.rank} of {ranked.pool}"
    lines = [
        CardLine(f"{near.similarity:.2f}  {near.caption}", "good" if near.own else "")
        for near in ranked.nearest
    ]
    title = example.captions[0] if example.captions else ""
    return Card([encode_picture(example.pixels, label)], title, lines)
