"""The training of a model that flipscale exported, as its configuration file records it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from flipscale.config import Phase
from flipscale.interop.openclip_directory import finished_config


@dataclass(frozen=True)
class Provenance:
    """What an exported model records about its training."""

    samples_seen: int | None = None
    phases: tuple[Phase, ...] = ()
    """The phases of its job; empty if another version wrote them, or if their shapes are not the export's."""
    weights: str | None = None
    """The weights that training started from, or None for random ones."""


def read_provenance(directory: Path) -> Provenance:
    """Read the provenance of an export.

    Args:
        directory: An OpenCLIP directory that flipscale wrote.
    """
    stamp = _mapping(finished_config(directory).get("flipscale"))
    recorded = _mapping(stamp.get("provenance"))

    samples = recorded.get("samples_seen")
    weights = recorded.get("weights")
    phases = _phases(recorded.get("phases", ()))
    if not isinstance(samples, int):
        return Provenance(phases=phases)

    return Provenance(samples, phases, str(weights) if weights else None)


def _phases(recorded: object) -> tuple[Phase, ...]:
    try:
        phases = tuple(Phase.model_validate(phase) for phase in cast("Sequence[object]", recorded))
    except (TypeError, ValidationError):  # written by another version
        return ()

    if any(phase.image_size is not None or phase.patch_size is not None for phase in phases):
        return ()
    return phases


def _mapping(value: object) -> Mapping[str, object]:
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}
