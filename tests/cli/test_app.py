"""The command line as a user sees it: fast help, errors of one sentence, exit codes."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import get_args

import pytest
import torch
from typer.testing import CliRunner

from flipscale import __version__
from flipscale.cli.app import COMMANDS, app
from flipscale.cli.evaluation_sets import Metric
from flipscale.config import ZeroShotMetric

ROOT = Path(__file__).resolve().parents[2]


def flipscale(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flipscale", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
    )


HEAVY = {"torch", "open_clip", "transformers", "PIL", "numpy", "pydantic"}


def imported_by(*arguments: str) -> set[str]:
    """Return the names of all modules that a command imports."""
    program = [sys.executable, "-X", "importtime", "-m", "flipscale", *arguments]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}


def test_versions_are_read_without_an_import_of_the_libraries() -> None:
    imported = imported_by("--version")
    assert not HEAVY & imported
    assert "typer" in imported


# The smallest program with two commands; its help takes as long as Python and typer need.
BARE = """
import typer
app = typer.Typer()
for name in ("train", "submit"):
    app.command(name)(lambda: None)
app()
"""


@pytest.mark.slow
def test_help_is_fast_and_does_not_import_torch(tmp_path: Path) -> None:
    """Compare with a program that does nothing, since seconds differ from machine to machine."""
    (tmp_path / "bare.py").write_text(BARE)
    programs = {"flipscale": ["-m", "flipscale"], "bare": [tmp_path / "bare.py"]}
    seconds: dict[str, list[float]] = {name: [] for name in programs}

    for _ in range(5):
        for name, program in programs.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
            done = subprocess.run(
                [sys.executable, *program, "--help"], capture_output=True, text=True, check=True
            )
            seconds[name].append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
            assert "train" in done.stdout

    assert min(seconds["flipscale"]) <= 2 * min(seconds["bare"]), seconds

    assert not HEAVY & imported_by("--help")


LIBRARIES = ("torch", "deepspeed", "fairscale", "open_clip_torch", "submitit", "webdataset")

# Packages are looked for in one directory only, once all that the command itself needs is imported.
ELSEWHERE = """
import platform, sys
from importlib import metadata
from flipscale.cli.app import main
metadata.version("typer")
sys.path[:] = [sys.argv.pop(1)]
main()
"""


def versions(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    lines = [re.fullmatch(r"(\S+) +(\S.*)", line) for line in done.stdout.splitlines()]
    assert len({line.start(2) for line in lines if line}) == 1  # aligned
    return {line[1]: line[2] for line in lines if line}


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_versions_are_those_that_are_installed(option: str) -> None:
    shown = versions(flipscale(option))
    assert list(shown) == ["flipscale", "Python", *LIBRARIES]
    assert (shown.pop("flipscale"), shown.pop("Python")) == (__version__, platform.python_version())
    built_for = f" (CUDA {torch.version.cuda})" if torch.version.cuda else " (CPU only)"
    # By the package: torch itself adds a label to its version, which builds from PyPI do not have.
    assert shown.pop("torch") == metadata.version("torch") + built_for
    assert shown == {name: metadata.version(name) for name in LIBRARIES[1:]}


@pytest.mark.parametrize(
    ("text", "build"),
    [
        ("cuda: Optional[str] = '12.8'\nhip: Optional[str] = None\n", "CUDA 12.8"),  # of PyPI: no label
        ("cuda = None\nhip = '6.4.43482'\n", "ROCm 6.4.43482"),
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\nxpu: Optional[str] = None\n", "CPU only"),
        (None, "unknown build"),
    ],
)
def test_build_of_torch_and_missing_libraries_are_said(tmp_path: Path, text: str | None, build: str) -> None:
    (tmp_path / "torch-2.9.1.dist-info").mkdir()
    (tmp_path / "torch-2.9.1.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.9.1\n"
    )
    if text is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/version.py").write_text(f"__version__ = '2.9.1'\n{text}")

    program = [sys.executable, "-c", ELSEWHERE, str(tmp_path), "--version"]
    shown = versions(subprocess.run(program, capture_output=True, text=True, check=False))
    assert shown["torch"] == f"2.9.1 ({build})"
    assert {shown[name] for name in LIBRARIES[1:]} == {"not installed"}


@pytest.mark.parametrize("words", ["", "data", *COMMANDS])
def test_short_option_shows_the_help(words: str) -> None:
    short, long = (CliRunner().invoke(app, [*words.split(), option]) for option in ("-h", "--help"))
    assert (short.exit_code, short.stdout) == (0, long.stdout)
    assert "Usage:" in short.stdout


def test_shell_completes_commands_and_leaves_paths_to_the_shell() -> None:
    def completed(words: str) -> list[str]:
        environment = {
            **os.environ,
            "_FLIPSCALE_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(words.count(" ")),
        }
        program = [sys.executable, "-m", "flipscale"]
        done = subprocess.run(program, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.split()

    assert completed("flipscale re") == ["rehearse", "report"]
    assert completed("flipscale data a") == ["audit"]
    assert completed("flipscale status --w") == ["--watch"]
    assert completed("flipscale train jo") == []  # bash then completes the names of files


JOB = """
name: x
model: vit_micro_p8
data:
  train: missing/{00000..00001}.tar
  tokenizer: {kind: wordpiece, vocab: vocab.txt}
phases:
  - {name: a, samples: 640, mask_ratio: 0.5, batch_size: 64, base_lr: 1e-3}
"""


ENDS = """
import atexit, gc, sys
atexit.register(lambda: print(len(gc.get_objects())))
from flipscale.cli.app import main
sys.argv = ["flipscale", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("no-such-command", 2)])
def test_a_command_ends_without_a_visit_to_every_object(argument: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS, argument], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 1000  # else tens of thousands, and 300,000 with torch


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.lane=3", "unknown key data.lane; did you mean lanes?"),
        ("phases.0.samples=12.8Q", "unknown unit"),
        ("phases.0.samples=-5", "not a count"),
        ("phases.0.batch_size=0", "greater than 0"),
        ("phases.0.batch_size=100", "not a multiple of data.lanes = 64; the nearest are 64 and 128"),
        ("phases.0.samples=650", "the nearest are 640 and 704"),
        ("model.preset=vit_b61", "vit_b16"),
        ("model.image_size=33", "patch size 8"),
        ("sharding.strategy=fsdp3", "fsdp"),
        ("sharding.activation_checkpointing=every 0", "activation_checkpointing"),
        ("sharding.strategy=fairscale_fsdp", "CUDA"),
        ("seed=1", "does not exist"),
    ],
)
def test_wrong_input_gets_one_sentence_and_exit_2(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\na\n")

    done = flipscale("train", "job.yaml", override, cwd=tmp_path)

    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert "Traceback" not in done.stderr


def test_too_many_processes_for_the_lanes_are_refused_before_the_rendezvous(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB)
    done = subprocess.run(
        [sys.executable, "-m", "flipscale", "train", "job.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "WORLD_SIZE": "3", "RANK": "0"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "start 2 or 4 processes" in done.stderr


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("eval", "--batch-size 0"),
        ("compare", "--batch-size 0"),
        ("probe", "--micro-batch 0"),
        ("probe", "--seed -1"),
        ("probe", "--epochs 0"),
        ("finetune", "--micro-batch -1"),
        ("finetune", "--seed -1"),
        ("finetune", "--batch-size 1"),
    ],
)
def test_number_out_of_range_is_refused_by_its_option(command: str, wrong: str) -> None:
    """The options are checked first: no file that these commands name exists."""
    sets = [] if command in ("eval", "compare") else ["--train", "a.tar", "--test", "b.tar"]
    out = [] if command in ("eval", "probe") else ["--out", "out"]

    done = CliRunner().invoke(app, [command, "nowhere", *sets, *out, *wrong.split()], env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert f"Invalid value for '{wrong.split()[0]}'" in done.stderr


def test_help_names_every_metric() -> None:
    option = get_args(Metric)[1]
    named = re.findall(r"\w+", option.help)
    assert [name for name in named if name != "or"] == list(get_args(ZeroShotMetric))


@pytest.mark.parametrize("command", ["eval", "export"])
def test_missing_checkpoint_is_named(tmp_path: Path, command: str) -> None:
    more = [str(tmp_path / "out")] if command == "export" else []
    done = flipscale(command, str(tmp_path), *more)
    assert done.returncode == 2
    assert "neither a run, nor a checkpoint, nor an OpenCLIP directory" in done.stderr


def test_job_of_the_readme_can_be_planned(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    job = readme.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "job.yaml").write_text(job)
    done = flipscale("plan", "job.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "195,313" in done.stdout
