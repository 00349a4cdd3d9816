"""Options objects: one signature per command, for typer and for Python callers."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, dataclass, fields
from importlib import import_module
from typing import Annotated, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from flipscale.cli.app import COMMANDS
from flipscale.cli.options import expand_options
from flipscale.cli.plan import PlanOptions
from flipscale.planning.gpus import DEFAULT_GPU


@dataclass(frozen=True, kw_only=True)
class PaintOptions:
    """The options of a command for these tests."""

    wall: Annotated[str, typer.Argument(metavar="WALL", help="What to paint.")]
    colour: Annotated[str, typer.Option(help="Its colour.")] = "white"
    coats: Annotated[int, typer.Option(min=1)] = 2


@pytest.fixture
def painted() -> list[PaintOptions]:
    return []


@pytest.fixture
def app(painted: list[PaintOptions]) -> typer.Typer:
    def paint(options: PaintOptions) -> None:
        """Paint a wall."""
        painted.append(options)

    app = typer.Typer()
    app.command()(expand_options(paint))
    return app


def test_the_command_gets_its_options_object(app: typer.Typer, painted: list[PaintOptions]) -> None:
    assert CliRunner().invoke(app, ["north", "--coats", "3"]).exit_code == 0
    assert CliRunner().invoke(app, ["south"]).exit_code == 0
    assert painted == [PaintOptions(wall="north", coats=3), PaintOptions(wall="south")]


def test_typer_sees_the_fields(app: typer.Typer, painted: list[PaintOptions]) -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"}).stdout
    for text in ("Paint a wall.", "WALL", "What to paint.", "Its colour.", "[default: white]", "x>=1"):
        assert text in shown
    refused = CliRunner().invoke(app, ["north", "--coats", "0"])
    assert (refused.exit_code, painted) == (2, [])
    assert "Invalid value for '--coats'" in refused.stderr
    assert CliRunner().invoke(app, []).exit_code == 2  # WALL has no default


def test_a_command_with_parameters_is_unchanged() -> None:
    def mix(colour: Annotated[str, typer.Argument()], *, litres: float = 1.0) -> None: ...

    assert expand_options(mix) is mix


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_has_at_most_six_parameters_or_one_frozen_options_object(words: str) -> None:
    module = COMMANDS[words]
    command = getattr(import_module(f"flipscale.cli.{module}"), module.rpartition(".")[2])
    parameters = inspect.signature(command).parameters
    expanded = inspect.signature(expand_options(command)).parameters
    assert len(parameters) <= 6
    assert (command.__doc__ or "").splitlines()[0].endswith(".")
    if list(parameters) == ["options"]:
        options = get_type_hints(command)["options"]
        assert list(expanded) == [field.name for field in fields(options)]
        assert len(expanded) > 6
        made = options(**{name: None for name in expanded})
        with pytest.raises(FrozenInstanceError):
            setattr(made, next(iter(expanded)), None)


def test_default_that_the_help_repeats_is_that_of_the_plan() -> None:
    """The modules of commands are light, so that they cannot import this value."""
    (option,) = get_type_hints(PlanOptions, include_extras=True)["gpu"].__metadata__
    assert option.help.endswith(f"or {DEFAULT_GPU}.")
