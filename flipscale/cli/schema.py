"""`flipscale schema`."""

from __future__ import annotations

from typing import Annotated

import typer

from flipscale.errors import UserError
from flipscale.terminal import print_json


def schema(
    of: Annotated[str, typer.Argument(metavar="[job|evaluation]", help="What it describes.")] = "job",
) -> None:
    """Print the JSON Schema of job files, for editors, or of the document of an evaluation."""
    from flipscale.config import job_schema
    from flipscale.evaluation.document import evaluation_schema

    schemas = {"job": job_schema, "evaluation": evaluation_schema}
    if of not in schemas:
        raise UserError(f"there is no schema of {of!r}; choose {' or '.join(schemas)}")

    print_json(schemas[of]())
