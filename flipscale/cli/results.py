"""The file of scores that `--out` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flipscale.errors import RunError


def write_results(results: Mapping[str, Any], out: Path) -> None:
    """Write the document; whoever calls has shown the scores before, and tried the file before its work.

    Raises RunError where the file cannot be written after all.
    """
    try:
        out.write_text(json.dumps(results, indent=2) + "\n")
    except OSError as error:
        raise RunError(
            f"{out} could not be written ({error.strerror}); the scores are those shown", kind="disk"
        ) from error
