"""The file of scores that `--out` names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flipscale.errors import RunError
from flipscale.files import write_output


def write_results(document: Mapping[str, Any], out: Path) -> None:
    """Write the document of an evaluation or a probe as JSON.

    Callers have shown the scores before, and have checked before their work that the file can be written.

    Args:
        document: What `json` can write.
        out: The file, which is replaced; its directory exists.

    Raises:
        RunError: If the file cannot be written after all.
    """
    try:
        write_output(out, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise RunError(
            f"{out} could not be written ({error.strerror}); the scores are those shown", kind="disk"
        ) from error
