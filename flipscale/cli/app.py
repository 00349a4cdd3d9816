"""The typer app: one registration line per command, the handling of errors, and the exit codes.

The modules of the commands are light: each imports what its command needs when the command runs, so that
`--help` answers at once.
"""

from __future__ import annotations

import gc
import logging
import sys
from importlib import import_module

import typer

from flipscale.addresses import Formatter, without_secrets
from flipscale.cli.options import expand_options
from flipscale.cli.versions import Version
from flipscale.errors import RunError, StoppedEarly, UserError
from flipscale.files import storage_problem
from flipscale.terminal import say

EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 75

_PROGRAM = "flipscale"
"""The name in usage and completion, also of `python -m flipscale`."""

GROUPS = {
    "data": "Make, index, check and audit training data.",
    "bench": "Measure this machine.",
    "show": "Show the models that a job can name, and a job as it is understood.",
}
"""Commands of two words: the first word and its help text."""

COMMANDS = {
    "train": "train",
    "submit": "submit",
    "plan": "plan",
    "rehearse": "rehearse",
    "schema": "schema",
    "show job": "show.job",
    "show presets": "show.presets",
    "status": "status",
    "checkpoints": "checkpoints",
    "stop": "stop",
    "cancel": "cancel",
    "doctor": "doctor",
    "eval": "evaluate",
    "probe": "probe",
    "finetune": "finetune",
    "export": "export",
    "import": "import_model",
    "report": "report",
    "compare": "compare",
    "data synth": "data.synth",
    "data index": "data.index",
    "data check": "data.check",
    "data vocab": "data.vocab",
    "data audit": "data.audit",
    "bench loader": "bench_loader",
}
"""The words of each command, in the order of the help, and its module below flipscale.cli.

A module defines its command as the function of the module's own name.
"""


def main() -> None:
    """Run the command that sys.argv names.

    Exits with 0 if it is done, 2 if the input is wrong, 75 if it stopped with work left, and 1 for the rest.
    """
    # Imports make hundreds of thousands of objects and hardly any garbage. With Python's usual 700 objects
    # between two collections, the search for it is a fifth of the time of training's imports.
    gc.set_threshold(100_000, 20)
    _log_to_stderr()

    try:
        app(prog_name=_PROGRAM)
    except UserError as error:
        _exit(f"error: {error}", EXIT_USER)
    except StoppedEarly as stopped:
        _exit(str(stopped), EXIT_STOPPED)
    except RunError as error:
        _exit(f"error: {error}", EXIT_FAILED)
    except OSError as error:
        if (problem := storage_problem(error)) is None:
            raise
        _exit(f"error: {problem}", EXIT_FAILED)
    except RuntimeError as error:
        if str(error).startswith("Symlink loop"):  # of pathlib, until Python 3.12
            _exit(f"error: a link leads to itself ({error}); name what it should lead to", EXIT_USER)
        # By its name: the module of the class costs every command time.
        if type(error).__name__ != "BrokenProcessPool":
            raise
        _exit(
            "error: a worker process was killed, perhaps because memory was full; use fewer workers, or run "
            "the same command again",
            EXIT_FAILED,
        )
    except KeyboardInterrupt:
        _exit("interrupted", EXIT_FAILED)
    finally:
        # An interpreter that ends visits every object that is not frozen, most of a second with torch.
        gc.freeze()


def _log_to_stderr() -> None:
    """Show what flipscale reports and what other libraries warn of; their reports name signed addresses."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("flipscale").setLevel(logging.INFO)


def _exit(message: str, code: int) -> None:
    say(without_secrets(message), error=True)
    sys.exit(code)


def _options(version: Version = False) -> None:
    """Take the options that come before a command; an option that prints ends the program by itself."""


def _make_app() -> typer.Typer:
    made = typer.Typer(
        name=_PROGRAM,
        help="Train FLIP (CLIP with most of the image masked out) and spend samples-seen budgets exactly.",
        callback=_options,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},  # commands and groups inherit them
    )
    groups = {"": made}
    for word, text in GROUPS.items():
        groups[word] = typer.Typer(no_args_is_help=True, help=text)
        made.add_typer(groups[word], name=word)

    for words, module in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        function = getattr(import_module(f"flipscale.cli.{module}"), module.rpartition(".")[2])
        groups[group].command(name)(expand_options(function))

    return made


app = _make_app()
