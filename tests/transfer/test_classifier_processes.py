"""Probes and fine-tuning in two real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.classifier_samples import exported_model, labelled_tar
from typer.testing import CliRunner

from flipscale.cli.app import app

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported_model(tmp_path_factory.mktemp("processes") / "model")


@pytest.fixture(scope="module")
def sets(model: Path) -> list[str]:
    """64 training and 24 test images: three micro-batches that two processes do not share evenly."""
    train = labelled_tar(model.parent / "train.tar", 4, 16)
    test = labelled_tar(model.parent / "test.tar", 4, 6, first=16)
    return ["--train", train, "--test", test, "--micro-batch", "8"]


def in_two_processes(*arguments: str) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [sys.executable, *launcher, "-m", "flipscale", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def in_this_one(*arguments: str) -> None:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output


LARS = ("--method", "lars", "--epochs", "3", "--batch-size", "16", "--base-lr", "80")


@pytest.mark.parametrize(
    "options", [pytest.param((), id="lbfgs", marks=pytest.mark.long), pytest.param(LARS, id="lars")]
)
def test_two_processes_probe_like_one(model: Path, sets: list[str], tmp_path: Path, options) -> None:
    arguments = ["probe", str(model), *sets, *options, "--out"]
    in_two_processes(*arguments, str(tmp_path / "two.json"))
    in_this_one(*arguments, str(tmp_path / "one.json"))
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two


def test_one_process_resumes_what_two_processes_tuned(model: Path, sets: list[str], tmp_path: Path) -> None:
    arguments = ["finetune", str(model), *sets, "--out", str(tmp_path / "out")]
    arguments += ["--epochs", "2", "--batch-size", "16", "--base-lr", "0.01"]
    in_two_processes(*arguments)
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    (tmp_path / "out" / "results.json").unlink()
    in_this_one(*arguments)  # both epochs are done: it scores the weights that the first process saved
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == first
