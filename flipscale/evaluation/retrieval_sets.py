"""The registered types of image-caption sets. CONTRIBUTING.md says how to add one."""

from __future__ import annotations

from flipscale.evaluation.caption_files import CAPTION_FILE
from flipscale.evaluation.set_types import SampleSource, SetType, type_of
from flipscale.evaluation.shards import CONVERTED_SHARDS, SHARDS

CAPTIONED_SET_TYPES: tuple[SetType[SampleSource], ...] = (
    CAPTION_FILE,
    CONVERTED_SHARDS,
    SHARDS,  # recognises everything, so it stays last
)
"""The types that retrieval reads; the first that recognises a set opens it."""


def captioned_set(data: str) -> SampleSource:
    """Open the image-caption set at a path; its samples have their captions, one per line.

    Args:
        data: Path or shard pattern, as a job names it.
    """
    return type_of(data, CAPTIONED_SET_TYPES).open(data)
