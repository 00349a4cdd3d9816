"""Arguments and options that several commands share, and the options objects of commands with many."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="Job file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.SUB=VALUE]...", help="Changes to the job.", show_default=False),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)]
Checkpoint = Annotated[
    Path,
    typer.Argument(metavar="CHECKPOINT", help="Run, checkpoint or OpenCLIP directory.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Results = Annotated[Path | None, typer.Option(help="Also write the results here (JSON).", show_default=False)]

Shards = Annotated[
    str, typer.Argument(metavar="SHARDS", help="Shards by brace expansion.", show_default=False)
]
Workers = Annotated[int | None, typer.Option(help="Processes; default: all cores.", show_default=False)]
AllowPipe = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="A command that `pipe:` shards may run.", show_default=False),
]

EncodedBatch = Annotated[int, typer.Option(help="Images that a process encodes at once.", min=1)]
TrainSet = Annotated[
    str, typer.Option(help="Shards with .cls labels, or a folder of class folders.", show_default=False)
]
TestSet = Annotated[str, typer.Option(help="Likewise, with the same classes.", show_default=False)]
Epochs = Annotated[int | None, typer.Option(help="Default: the recipe's.", min=1, show_default=False)]
BatchSize = Annotated[
    int | None,
    typer.Option(
        help="Images per update, over all processes; default: the recipe's.", min=2, show_default=False
    ),
]
BaseLr = Annotated[
    float | None,
    typer.Option(
        help="Learning rate for 256 images, scaled with the batch; default: the recipe's.",
        show_default=False,
    ),
]
MicroBatch = Annotated[int, typer.Option(help="Images that a process holds on its device at once.", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the random choices.", min=0)]


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command in the form that typer reads: with one parameter per option.

    A command with more than six options takes a single frozen dataclass, whose fields carry typer's
    annotations. Python callers pass such an object; typer needs a signature with the fields as parameters.

    Args:
        command: The function of a command. Its parameters carry typer's annotations, or its only parameter
            is an options object.

    Returns:
        `command` itself, or for a command with an options object a function of the same name and docstring
        that takes the fields as keyword arguments.
    """
    hints = get_type_hints(command, include_extras=True)
    types = [hints[name] for name in inspect.signature(command).parameters]
    if len(types) != 1 or not is_dataclass(types[0]):
        return command

    (options_type,) = types

    @wraps(command)
    def expanded(**values: Any) -> None:
        command(options_type(**values))

    field_hints = get_type_hints(options_type, include_extras=True)
    parameters = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=field_hints[field.name],
        )
        for field in fields(options_type)
    ]
    expanded.__dict__["__signature__"] = inspect.Signature(parameters)
    expanded.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return expanded
