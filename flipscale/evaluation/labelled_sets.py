"""The registered types of labelled evaluation sets. CONTRIBUTING.md says how to add one."""

from __future__ import annotations

from flipscale.evaluation.class_folders import CLASS_FOLDERS
from flipscale.evaluation.set_types import NamedClasses, SampleSource, SetType, type_of
from flipscale.evaluation.shards import CONVERTED_SHARDS, SHARDS

LABELLED_SET_TYPES: tuple[SetType[SampleSource | NamedClasses], ...] = (
    CONVERTED_SHARDS,
    CLASS_FOLDERS,
    SHARDS,  # recognises everything, so it stays last
)
"""The types that zero-shot classification, probes and fine-tuning read.

The first type that recognises a set opens it.
"""


def labelled_set(data: str) -> SampleSource | NamedClasses:
    """Open the labelled set at a path.

    Args:
        data: Path or shard pattern, as a job or an option names it.

    Raises:
        UserError: If the set cannot be used.
    """
    return type_of(data, LABELLED_SET_TYPES).open(data)
