"""What the reports of all shards of a data set say together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flipscale.data.checks.histograms import median
from flipscale.data.checks.scan import ShardReport, duplicates
from flipscale.data.quarantine import BadRecord, kind
from flipscale.data.shards.tar import Stray


@dataclass(frozen=True)
class DamagedShard:
    """A shard whose tar ends early or cannot be read."""

    path: str
    samples: int  # before the damage
    reason: str


@dataclass(frozen=True)
class DataSummary:
    """The document of `flipscale data check --json`, but for the clean shards that --fix writes.

    Quantiles have the keys "smallest", "median" and "largest", or none without good samples.
    """

    shards: int
    bytes: int  # of all shards
    samples: int
    good: int  # samples that training can use
    bad: list[BadRecord]
    reasons: dict[str, int]  # bad samples per kind of reason, the most frequent first
    damaged_shards: list[DamagedShard]
    duplicate_keys: int
    duplicate_keys_within_a_shard: int
    duplicate_images: int
    captions: dict[str, int]  # samples that have a caption there, by the name of its source
    oddities: dict[str, int]  # members that are worth a look, the most frequent first
    images_of_no_sample: dict[str, int]  # per shard that has some: the first of them and their number
    members_of_no_sample: dict[str, int]  # likewise, the other members
    shorter_side_pixels: dict[str, int]  # quantiles over the good images
    caption_words: dict[str, int]  # quantiles over the good captions


def summarize(reports: Sequence[ShardReport]) -> DataSummary:
    """Return the summary of the shards.

    Args:
        reports: One report per shard; at least one.
    """
    bad = [record for report in reports for record in report.bad]
    samples = sum(report.samples for report in reports)
    hashes = np.concatenate([report.hashes for report in reports])
    oddities = sum((report.oddities for report in reports), Counter[str]())

    return DataSummary(
        shards=len(reports),
        bytes=sum(report.bytes for report in reports),
        samples=samples,
        good=samples - len(bad),
        bad=bad,
        reasons=dict(Counter(kind(record.reason) for record in bad).most_common()),
        damaged_shards=[
            DamagedShard(report.path, report.samples, report.damage)
            for report in reports
            if report.damage is not None
        ],
        duplicate_keys=len(duplicates(hashes[:, 0])),
        duplicate_keys_within_a_shard=sum(len(report.repeated_keys) for report in reports),
        duplicate_images=len(duplicates(hashes[:, 1])),
        captions=_captions(reports),
        oddities=dict(oddities.most_common()),
        images_of_no_sample=_strays({report.path: report.strays.images for report in reports}),
        members_of_no_sample=_strays({report.path: report.strays.others for report in reports}),
        shorter_side_pixels=_quantiles(shorter_sides(reports)),
        caption_words=_quantiles(caption_lengths(reports)),
    )


def _strays(by_path: Mapping[str, Stray]) -> dict[str, int]:
    return {f"{stray.first} in {path}": stray.count for path, stray in by_path.items() if stray.count}


def _captions(reports: Sequence[ShardReport]) -> dict[str, int]:
    """Return the samples of all shards by the source of their captions; a source without any counts 0."""
    counts: Counter[str] = Counter()
    for report in reports:
        counts.update(report.captions)
    return dict(counts)


def shorter_sides(reports: Sequence[ShardReport]) -> Counter[int]:
    """Count the good images of all shards by their shorter side, in pixels."""
    return sum((report.sides for report in reports), Counter[int]())


def caption_lengths(reports: Sequence[ShardReport]) -> Counter[int]:
    """Count the good captions of all shards by their number of words."""
    return sum((report.caption_words for report in reports), Counter[int]())


def _quantiles(counts: Counter[int]) -> dict[str, int]:
    if not counts:
        return {}

    return {"smallest": min(counts), "median": median(counts), "largest": max(counts)}
