"""`flipscale export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flipscale.terminal import say


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="RUN", help="Run or checkpoint directory.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.", show_default=False)],
    verify: Annotated[
        bool, typer.Option("--verify", help="Only verify the export that is stored in OUT.")
    ] = False,
) -> None:
    """Write an OpenCLIP directory, and prove that stock OpenCLIP loads it and gives the same features."""
    from flipscale.cli.openclip_messages import how_to_load, verification
    from flipscale.interop.run_export import export_run

    report = export_run(checkpoint, out, only_verify=verify)
    done = "verified" if verify else "exported and verified"
    say(f"{out} {done} with {verification(report)}")
    say(how_to_load(out, report))
