"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="Job file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the job.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Shards = Annotated[
    str, typer.Argument(metavar="SHARDS", help="Shards by brace expansion.", show_default=False)
]
Workers = Annotated[int | None, typer.Option(help="Processes; all cores by default.", show_default=False)]
AllowPipe = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A command that `pipe:` shards may run.", show_default=False),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
