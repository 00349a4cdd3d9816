"""weights.json: the model from which a run took its starting weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flipscale.documents import read_as
from flipscale.errors import UserError
from flipscale.files import write_durably


@dataclass(frozen=True)
class WeightsOrigin:
    """The origin of a run's starting weights.

    Attributes:
        source: Absolute path of the model, as `model.weights` named it.
        sha256: Digest over names, shapes and values of its tensors.
    """

    source: str
    sha256: str


def check_weights_origin(record: Path, source: Path, sha256: str) -> None:
    """Record the starting weights of a new run, or check that they are the recorded ones.

    Args:
        record: The file, in the run directory.
        source: The model that the weights come from.
        sha256: Digest over names, shapes and values of its tensors.

    Raises:
        UserError: If a start before this one took other weights.
    """
    if not record.exists():
        write_durably(record, json.dumps(asdict(WeightsOrigin(str(source.resolve()), sha256))))
        return

    recorded = read_weights_origin(record)
    if recorded.sha256 != sha256:
        raise UserError(
            f"{source} is not what {record.parent} began with; restore these weights, or set another `output`"
        )


def read_weights_origin(record: Path) -> WeightsOrigin:
    """Read weights.json, which must exist.

    Raises:
        UserError: If it is damaged.
    """
    return read_as(WeightsOrigin, record)
